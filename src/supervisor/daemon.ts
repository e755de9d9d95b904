import { setTimeout } from 'node:timers/promises';
import type { Config } from '../config/types.js';
import { messageOf } from '../errors.js';
import { descriptorShortage } from './host/descriptor-limit.js';
import { capabilityShortage } from './host/preflight.js';
import { deviceLimit, deviceShortage } from './host/device-limit.js';
import { DaemonExit } from '../error-codes.js';
import type { Log } from '../log/log.js';
import { thisHost } from './host/host.js';
import { takeNotifier, type Notifier } from './service/notify.js';
import { assertReplaceable, replaceSelf } from './replacement.js';
import type { DeviceChange } from '../api/status.js';
import type { Supervisor } from './supervisor.js';
import { watchModules } from './module-watch.js';
import { withSupervisor } from './run.js';

/** How often a stop for the service manager is tried again while a device is in use. */
const STOP_RETRY_MS = 500;

export interface DaemonOptions {
  readonly config: Config;
  readonly configPath: string;
  /** Reads it again. */
  readonly loadConfig: () => Promise<Config>;
  /** Hand over to the code of backends in JavaScript whenever it is saved. */
  readonly watch: boolean;
  readonly runtimeDir: string;
  /** The group whose members may read from the control socket. */
  readonly group?: string | undefined;
  readonly stateDir: string;
  readonly log: Log;
}

/**
 * Serves the configuration until it is told to stop; resolves with the exit code. Rejects, with nothing left behind,
 * when it cannot begin. A device that does not start does not keep the others from being served.
 */
export async function runDaemon(options: DaemonOptions): Promise<number> {
  const { config, configPath, watch, log, ...place } = options;
  const notifier = takeNotifier(log);
  notifier.keepAlive();
  const onDeviceChange = ({ name, state }: DeviceChange): void => notifier.deviceChanged(name, state);
  const replaceable = (): Promise<void> => assertReplaceable(configPath);
  const daemon = { ...place, log, onDeviceChange, assertReplaceable: replaceable };
  const end = await withSupervisor(daemon, async (supervisor, ended) => {
    const signals = listenForSignals(supervisor, notifier, log);
    const stopWatching = watch ? watchModules(supervisor, log) : () => undefined;
    const { length } = config.devices;
    const shortages = [
      descriptorShortage(config.devices),
      deviceShortage(length, deviceLimit(thisHost)),
      capabilityShortage(config.devices),
    ];
    for (const shortage of shortages) if (shortage !== null) log.warn({}, shortage);
    try {
      const failures = await supervisor.start(config);
      const live = config.devices.length - failures.length;
      log.info({ devices: live, failed: failures.length }, 'serving');
      notifier.ready();
      await ended;
    } finally {
      stopWatching();
      signals.release();
    }
  });
  if (end === 'replaced') {
    log.info({}, 'going on as what is installed now');
    // The successor has to load before it gives one.
    notifier.signOfLife();
    replaceSelf(notifier.environment);
  }
  log.info({}, 'stopped');
  return DaemonExit.ok;
}

/** What SIGHUP does. */
async function reload(supervisor: Supervisor, log: Log): Promise<void> {
  try {
    await supervisor.reload({ dryRun: false });
    log.info({}, 'reloaded');
  } catch (error) {
    for (const line of messageOf(error).split('\n')) log.error({}, line);
  }
}

/** TERM and INT stop gracefully, a second one by force; HUP reloads; USR2 dumps the status to the log. */
function listenForSignals(supervisor: Supervisor, notifier: Notifier, log: Log): { release: () => void } {
  let stops = 0;
  const stop = async (signal: NodeJS.Signals): Promise<void> => {
    const force = stops++ > 0;
    log.info({ signal, force }, 'stopping');
    for (let said = ''; ;) {
      try {
        await notifier.whileStopping(() => supervisor.stop({ force }));
        return;
      } catch (error) {
        const reason = messageOf(error);
        if (reason !== said) log.error({}, `${reason}; still serving`);
        said = reason;
        // The stop is tried again: at a shutdown a file system may be unmounted a moment after we are told to stop.
        if (force || !notifier.managed) return;
        notifier.stopPutOff(reason);
        await setTimeout(STOP_RETRY_MS);
      }
    }
  };
  const handlers: readonly (readonly [NodeJS.Signals, (signal: NodeJS.Signals) => void])[] = [
    ['SIGTERM', (signal) => void stop(signal)],
    ['SIGINT', (signal) => void stop(signal)],
    ['SIGHUP', () => void notifier.whileReloading(() => reload(supervisor, log))],
    ['SIGUSR2', () => log.info({ status: supervisor.status() }, 'status')],
  ];
  for (const [signal, handler] of handlers) process.on(signal, handler);
  return {
    release: () => {
      for (const [signal, handler] of handlers) process.off(signal, handler);
    },
  };
}
