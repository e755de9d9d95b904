import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { lstat, mkdir, open, rm, type FileHandle } from 'node:fs/promises';
import { release } from 'node:os';
import { join, resolve } from 'node:path';
import { parseDevice } from '../config/schema.js';
import type { Config } from '../config/types.js';
import { SupervisorError, messageOf } from '../errors.js';
import { flock, ublkFeatures } from '../native/binding.js';
import { version } from '../version.js';
import { createApiServer } from './api-server.js';
import { DaemonExit } from './exit-codes.js';
import type { Logger } from './log.js';
import { controlSocket } from './runtime-dir.js';
import { Supervisor } from './supervisor.js';
import { UblkKernel } from './ublk-kernel.js';
import { servingZygote } from './zygote.js';
import { ZygoteKeeper } from './zygote-keeper.js';

export interface DaemonOptions {
  readonly config: Config;
  readonly runtimeDir: string;
  readonly log: Logger;
}

/**
 * Serves the configuration until it is told to stop; resolves with the exit code. Rejects, with nothing left behind,
 * when it cannot begin. A device that does not start does not keep the others from being served.
 */
export async function runDaemon({ config, runtimeDir, log }: DaemonOptions): Promise<number> {
  await makeRuntimeDirectory(runtimeDir);
  const lock = await lockRuntimeDirectory(runtimeDir);
  try {
    return await serve({ config, runtimeDir, log });
  } finally {
    await lock.close();
  }
}

async function serve({ config, runtimeDir, log }: DaemonOptions): Promise<number> {
  const zygoteSocket = join(runtimeDir, 'zygote.sock');
  await refuseOrphans(zygoteSocket);
  await using control = await open('/dev/ublk-control', constants.O_RDWR);

  const keeper: ZygoteKeeper = new ZygoteKeeper({
    socketPath: zygoteSocket,
    controlFd: control.fd,
    log,
    onExit: (notice) => {
      kernel.onExit(notice);
    },
  });
  const kernel = new UblkKernel({
    features: ublkFeatures(),
    cookie: instanceCookie(runtimeDir),
    zygote: () => keeper.get(),
  });
  const stopped = new AbortController();
  const supervisor = new Supervisor({
    kernel,
    log,
    version,
    kernelRelease: release(),
    parseDevice,
    onStopped: () => {
      stopped.abort();
    },
  });
  const api = createApiServer(supervisor, log);
  await api.listen(controlSocket(runtimeDir));
  const signals = listenForSignals(supervisor, log);
  try {
    const failures = await supervisor.start(config);
    const live = config.devices.length - failures.length;
    log.info({ devices: live, failed: failures.length }, 'serving');
    await new Promise<void>((done) => {
      if (stopped.signal.aborted) done();
      stopped.signal.addEventListener('abort', () => {
        done();
      });
    });
  } finally {
    signals.release();
    await api.close();
    await keeper.retire();
    await rm(zygoteSocket, { force: true });
  }
  log.info({}, 'stopped');
  return DaemonExit.ok;
}

async function makeRuntimeDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o750 });
    const found = await lstat(path);
    if (!found.isDirectory() || found.uid !== process.geteuid?.() || (found.mode & 0o002) !== 0) {
      throw new Error('it is not a directory that only we can write to');
    }
  } catch (error) {
    throw new SupervisorError(
      `using runtime directory ${path} failed: ${messageOf(error)}; choose another --runtime-dir`,
      {
        code: 'RUNTIME_DIR',
        cause: error,
      },
    );
  }
}

/** One supervisor a runtime directory. The lock goes with the process, however it ends. */
async function lockRuntimeDirectory(runtimeDir: string): Promise<FileHandle> {
  const path = join(runtimeDir, 'lock');
  const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600).catch(
    (error: unknown) => {
      throw new SupervisorError(`opening ${path} failed: ${messageOf(error)}`, { code: 'RUNTIME_DIR', cause: error });
    },
  );
  if (!flock(file.fd)) {
    await file.close();
    throw new SupervisorError(
      `a supervisor is running already: it holds ${path}; stop it or choose another --runtime-dir`,
      { code: 'RUNNING' },
    );
  }
  return file;
}

/** A supervisor that was killed leaves its zygote and queue processes serving; their devices are not ours to touch. */
async function refuseOrphans(zygoteSocket: string): Promise<void> {
  const pid = await servingZygote(zygoteSocket);
  if (pid !== null) {
    throw new SupervisorError(
      `starting failed: queue processes of a supervisor that died still serve their devices; ` +
        `end them with "kill -9 ${String(pid)}" (their zygote), which leaves the devices' users waiting`,
      { code: 'RUNNING' },
    );
  }
}

/** Marks our devices in the kernel: 64 bits of the runtime directory's digest, never 0. */
function instanceCookie(runtimeDir: string): bigint {
  const digest = createHash('sha256')
    .update(`ublk-supervisor\0${resolve(runtimeDir)}`)
    .digest();
  return digest.readBigUInt64LE(0) | 1n;
}

/** TERM and INT stop gracefully, a second one by force; HUP does nothing yet; USR2 dumps the status to the log. */
function listenForSignals(supervisor: Supervisor, log: Logger): { release: () => void } {
  let stops = 0;
  const stop = (signal: NodeJS.Signals): void => {
    const force = stops++ > 0;
    log.info({ signal, force }, 'stopping');
    supervisor.stop({ force }).catch((error: unknown) => {
      log.error({}, `${messageOf(error)}; still serving`);
    });
  };
  const handlers: readonly (readonly [NodeJS.Signals, (signal: NodeJS.Signals) => void])[] = [
    ['SIGTERM', stop],
    ['SIGINT', stop],
    [
      'SIGHUP',
      () => {
        log.info({}, 'SIGHUP is ignored');
      },
    ],
    [
      'SIGUSR2',
      () => {
        log.info({ status: supervisor.status() }, 'status');
      },
    ],
  ];
  for (const [signal, handler] of handlers) process.on(signal, handler);
  return {
    release: () => {
      for (const [signal, handler] of handlers) process.off(signal, handler);
    },
  };
}
