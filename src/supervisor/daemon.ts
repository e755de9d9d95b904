import type { Config } from '../config/types.js';
import { messageOf } from '../errors.js';
import { DaemonExit } from './exit-codes.js';
import type { Log } from './device-log.js';
import type { Supervisor } from './supervisor.js';
import { watchModules } from './watch.js';
import { withSupervisor } from './with-supervisor.js';

export interface DaemonOptions {
  readonly config: Config;
  /** Reads it again. */
  readonly loadConfig: () => Promise<Config>;
  /** Hand over to the code of backends in JavaScript whenever it is saved. */
  readonly watch: boolean;
  readonly runtimeDir: string;
  /** Whose members may read from the control socket. */
  readonly group?: string | undefined;
  readonly stateDir: string;
  readonly log: Log;
}

/**
 * Serves the configuration until it is told to stop; resolves with the exit code. Rejects, with nothing left behind,
 * when it cannot begin. A device that does not start does not keep the others from being served.
 */
export async function runDaemon(options: DaemonOptions): Promise<number> {
  const { config, watch, log, ...place } = options;
  await withSupervisor({ ...place, log }, async (supervisor, stopped) => {
    const signals = listenForSignals(supervisor, log);
    const stopWatching = watch ? watchModules(supervisor, log) : () => undefined;
    try {
      const failures = await supervisor.start(config);
      const live = config.devices.length - failures.length;
      log.info({ devices: live, failed: failures.length }, 'serving');
      await stopped;
    } finally {
      stopWatching();
      signals.release();
    }
  });
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
function listenForSignals(supervisor: Supervisor, log: Log): { release: () => void } {
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
        void reload(supervisor, log);
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
