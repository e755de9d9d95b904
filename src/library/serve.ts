import type { DeviceInput } from '../config/schema.js';
import { SupervisorError } from '../errors.js';
import type { Log } from '../log/log.js';
import type { DeviceStatus, Status, SupervisorApi } from '../api/status.js';

export interface ServeOptions<Name extends string = string> {
  /** As in a configuration file: ublk-supervisor.json(5). */
  readonly devices: readonly (DeviceInput & { readonly name: Name })[];
  /**
   * Gives the command line a way in: its control socket is there, and no other supervisor can use the directory meanwhile.
   * Left out: a private directory and no control socket, so that any number of programs can serve.
   */
  readonly runtimeDir?: string;
  /** Where crash reports are kept, as JSON files. Left out: `log` and `status` alone tell of crashes. */
  readonly stateDir?: string;
  /** A pino logger or what has its `info`, `warn` and `error`. Left out: warnings and errors go to stderr. */
  readonly log?: Log;
}

export interface StopOptions {
  /** Also while a device is open or mounted, which then sees I/O errors. */
  readonly force?: boolean;
}

export interface ServedDevice extends AsyncDisposable {
  readonly name: string;
  /** `/dev/ublkbN`. Throws when the kernel no longer has the device. */
  readonly path: string;
  /** Throws with `NOT_FOUND` when the device was stopped. */
  status(): DeviceStatus;
  /**
   * Resolves when the device is live again after it gave up, with its restarts forgotten. `clearQuarantine`: requests that
   * are refused because they crashed the backend are given to it again.
   */
  recover(options?: { readonly clearQuarantine?: boolean }): Promise<DeviceStatus>;
  /** Resolves when new queue processes serve the device; of a backend in JavaScript with its code as it is now. */
  restart(): Promise<DeviceStatus>;
  /**
   * Resolves when the device has `size` bytes. Rejects with `IN_USE` when that is less than now and a process has it open or
   * mounted, unless `force`.
   */
  resize(size: number, options?: { readonly force?: boolean }): Promise<DeviceStatus>;
  /**
   * Takes the device away and keeps its data. Rejects with `IN_USE`, and goes on serving, while a process has it open or
   * mounted. Disposal does the same.
   */
  stop(options?: StopOptions): Promise<void>;
}

export interface Serving<Name extends string = string> extends AsyncDisposable {
  /** By name, those of the options. */
  readonly devices: Readonly<Record<Name, ServedDevice>>;
  /** Resolves when one more device is live. Rejects, and leaves nothing of it, when it cannot be. */
  add(device: DeviceInput): Promise<ServedDevice>;
  status(): Status;
  /** Stops every device, or none if one of them is in use; then ends the supervisor. Disposal does the same. */
  stop(options?: StopOptions): Promise<void>;
}

/**
 * Serves block devices from this process, which needs root, until they are stopped: a process that ends earlier leaves
 * its devices without a supervisor. Resolves when all are live. Rejects with a `SupervisorError`, and leaves nothing
 * of its own behind, when one of them cannot be; what an earlier program left in `runtimeDir` is served on. Touches no signals.
 */
export async function serve<const Name extends string>(options: ServeOptions<Name>): Promise<Serving<Name>> {
  // Loaded here and not above, so that a backend's module, which imports this package too, does not wait for it.
  const { checkConfig } = await import('../config/schema.js');
  const { createLogger } = await import('../log/logger.js');
  const { withSupervisor } = await import('../supervisor/run.js');
  const { runtimeDir, stateDir, log = createLogger('warn'), ...rest } = options;
  const config = checkConfig(rest, 'serve', process.cwd());
  const names = options.devices.map(({ name }) => name);
  return new Promise((resolve, reject) => {
    const ended = withSupervisor({ runtimeDir, stateDir, log }, async (supervisor, stopped) => {
      await supervisor.startAll(config);
      resolve(serving(supervisor, names, ended));
      await stopped;
    });
    // After it resolved this is without effect, and `stop` says what went wrong.
    ended.catch(reject);
  });
}

function serving<Name extends string>(
  supervisor: SupervisorApi,
  names: readonly Name[],
  ended: Promise<unknown>,
): Serving<Name> {
  const stop = async ({ force = false }: StopOptions = {}): Promise<void> => {
    await supervisor.stop({ force });
    await ended;
  };
  return {
    devices: Object.fromEntries(names.map((name) => [name, servedDevice(supervisor, name)])) as Record<
      Name,
      ServedDevice
    >,
    add: async (device) => servedDevice(supervisor, (await supervisor.add(device)).name),
    status: () => supervisor.status(),
    stop,
    [Symbol.asyncDispose]: () => stop(),
  };
}

/** Finds the device by name: a client of the control socket may have replaced it with another one of that name. */
function servedDevice(supervisor: SupervisorApi, name: string): ServedDevice {
  const status = (): DeviceStatus => {
    const found = supervisor.deviceStatus(name);
    if (found) return found;
    throw new SupervisorError(`device ${name} is not served: it was stopped`, { code: 'NOT_FOUND', device: name });
  };
  const stop = async ({ force = false }: StopOptions = {}): Promise<void> => {
    try {
      await supervisor.remove(name, { force, removeData: false });
    } catch (error) {
      if (!(error instanceof SupervisorError && error.code === 'NOT_FOUND')) throw error;
    }
  };
  return {
    name,
    get path() {
      const { path, state } = status();
      if (path !== null) return path;
      throw new SupervisorError(`device ${name} has no path: it is ${state}`, { code: 'NOT_FOUND', device: name });
    },
    status,
    recover: (options) => supervisor.recover(name, options),
    restart: () => supervisor.restart(name),
    resize: (size, { force = false } = {}) => supervisor.resize(name, { size, force }),
    stop,
    [Symbol.asyncDispose]: () => stop(),
  };
}
