import { constants } from 'node:fs';
import { lstat, mkdir, mkdtemp, open, realpath, rm, type FileHandle } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { parseDevice } from '../config/schema.js';
import type { Config } from '../config/types.js';
import { SupervisorError, messageOf } from '../errors.js';
import { becomeIoFlusher, ublkFeatures } from '../native/addon/system.js';
import { flock } from '../native/addon/files.js';
import { version } from '../version.js';
import { findLeftDevices } from './adoption.js';
import { createApiServer } from '../api/server.js';
import { CrashFiles } from './crashes/crash-files.js';
import { DeviceLinks } from './nodes/device-links.js';
import type { Log } from '../log/log.js';
import { Cookies } from './cookies.js';
import { Journal } from './journal.js';
import { assertReady } from './host/preflight.js';
import { controlSocket, lockFile } from '../api/places.js';
import { shareWithGroup } from '../api/socket-group.js';
import { Supervisor, type SupervisorEnd } from './supervisor.js';
import { UblkKernel } from './ublk/ublk-kernel.js';
import type { DeviceChange } from '../api/status.js';
import { Stores } from './stores/stores.js';
import { ZygoteKeeper } from './zygote/zygote-keeper.js';
import { isOurDirectory } from '../trusted.js';

export interface SupervisorPlace {
  /** For one supervisor at a time, with its control socket. Left out: a private one, and no control socket. */
  readonly runtimeDir?: string | undefined;
  /** The group whose members may read from the control socket; left out: root's. */
  readonly group?: string | undefined;
  /** The directory for crash reports. Left out: none are kept. */
  readonly stateDir?: string | undefined;
  readonly log: Log;
  /** Reads the configuration again, for a reload; left out, there is none to read. */
  readonly loadConfig?: (() => Promise<Config>) | undefined;
  /** Rejects when this process cannot be replaced by what is installed now; left out, it never is. */
  readonly assertReplaceable?: (() => Promise<void>) | undefined;
  /** Called after every change of a device's state; must not throw. */
  readonly onDeviceChange?: (device: DeviceChange) => void;
}

/** Is given the supervisor and what resolves when it has ended. */
type Use = (supervisor: Supervisor, ended: Promise<void>) => Promise<void>;

/**
 * Runs a supervisor for as long as `use` takes; afterwards no process, socket or lock of it is left, but the processes that
 * serve in a runtime directory where it was not told to stop them: they are its successor's. Resolves with how it ended, if
 * it did. Rejects when this machine or directory cannot be used, or as `use` does.
 */
export async function withSupervisor(place: SupervisorPlace, use: Use): Promise<SupervisorEnd | null> {
  const { runtimeDir, group, log } = place;
  try {
    // Comes before anything goes through io_uring: the kernel's workers for it keep the flags of the thread that first needed one.
    becomeIoFlusher();
  } finally {
    // Says better what is missing for that.
    assertReady((warning) => log.warn({}, warning));
  }
  if (runtimeDir === undefined) {
    const directory = await mkdtemp('/run/ublk-supervisor-');
    try {
      return await runIn(directory, null, place, use);
    } finally {
      await rm(directory, { recursive: true });
    }
  } else {
    await makeRuntimeDirectory(runtimeDir);
    const lock = await lockRuntimeDirectory(runtimeDir);
    try {
      return await runIn(runtimeDir, { path: controlSocket(runtimeDir), group }, place, use);
    } finally {
      await lock.close();
    }
  }
}

interface ControlSocket {
  readonly path: string;
  readonly group: string | undefined;
}

async function runIn(
  directory: string,
  socket: ControlSocket | null,
  place: SupervisorPlace,
  use: Use,
): Promise<SupervisorEnd | null> {
  const { stateDir, log, loadConfig, assertReplaceable, onDeviceChange } = place;
  const crashFiles = stateDir === undefined ? null : new CrashFiles(stateDir, log);
  await using control = await open('/dev/ublk-control', constants.O_RDWR);
  // It may have several names, as /run has.
  const cookies = new Cookies(await realpath(directory));
  const journal = new Journal(join(directory, 'devices'), parseDevice, log);
  const keeper = new ZygoteKeeper({ directory, controlFd: control.fd, log });
  const kernel = new UblkKernel({
    features: ublkFeatures(),
    cookieOf: (name) => cookies.cookieOf(name),
    zygotes: keeper,
  });
  const stores = new Stores();
  let end: () => void = () => undefined;
  const ended = new Promise<void>((resolve) => {
    end = resolve;
  });
  const links = new DeviceLinks(log);
  links.removeStale();
  const supervisor = new Supervisor({
    kernel,
    stores,
    log,
    version,
    kernelRelease: release(),
    parseDevice,
    journal,
    findLeftDevices: (configured) =>
      findLeftDevices({ cookies, keeper, journal, log, deleteDevice: (id) => kernel.deleteLeftDevice(id) }, configured),
    crashFiles,
    loadConfig,
    startSuccessor: () => keeper.startSuccessor(),
    onPartitionsChange: (device, id, numbers) => links.partitionsChanged(device, id, numbers),
    onDeviceChange: (device) => {
      links.deviceChanged(device);
      onDeviceChange?.(device);
    },
    assertReplaceable,
    onEnd: () => end(),
  });
  const api = createApiServer(supervisor, log);
  if (socket !== null) await api.listen(socket.path);
  try {
    if (socket?.group !== undefined) await shareWithGroup(socket.path, socket.group);
    await use(supervisor, ended);
    return supervisor.end;
  } finally {
    await api.close();
    // Devices that no command stopped go on without us. In a private directory no successor could find them, so they end.
    await (supervisor.end === 'stopped' || socket === null ? keeper.retire() : keeper.disconnect());
    await stores.close();
    await journal.settled();
  }
}

async function makeRuntimeDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o750 });
    const found = await lstat(path);
    if (!isOurDirectory(found)) {
      throw new Error('it is not a directory that only we can write to');
    }
  } catch (error) {
    throw new SupervisorError(
      `using runtime directory ${path} failed: ${messageOf(error)}; choose another runtime directory`,
      {
        code: 'RUNTIME_DIR',
        cause: error,
      },
    );
  }
}

/** One supervisor a runtime directory. The lock goes with the process, however it ends. */
async function lockRuntimeDirectory(runtimeDir: string): Promise<FileHandle> {
  const path = lockFile(runtimeDir);
  const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600).catch(
    (error: unknown) => {
      throw new SupervisorError(`opening ${path} failed: ${messageOf(error)}`, { code: 'RUNTIME_DIR', cause: error });
    },
  );
  if (!(await flock(file.fd))) {
    await file.close();
    throw new SupervisorError(
      `a supervisor is running already: it holds ${path}; stop it or choose another runtime directory`,
      { code: 'RUNNING' },
    );
  }
  return file;
}
