import { Option } from 'commander';
import { messageOf } from '../errors.js';
import { daemonExitCode } from './exit-codes.js';
import { runtimeDirectory, stateDirectory } from '../api/places.js';
import { runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';
import { printError } from './output.js';

const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const;

interface StartOptions extends RuntimeDirOption {
  readonly group?: string;
  readonly stateDir?: string;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly watch?: true;
}

export const startCommand: Register = (program) => {
  program
    .command('start')
    .description('serve the devices of a configuration; stays in the foreground')
    .argument('<config>', 'configuration file; see ublk-supervisor.json(5)')
    .option('--watch', 'hand devices over to the code of their backends in JavaScript whenever it is saved')
    .addOption(runtimeDirOption())
    .option('--group <name>', 'a group whose members may look (status, list) but change nothing')
    .option('--state-dir <dir>', 'where crash reports are kept (default: $STATE_DIRECTORY or /var/lib/ublk-supervisor)')
    .addOption(new Option('--log-level <level>', 'least important messages to log').choices(LOG_LEVELS).default('info'))
    .action(async (path: string, options: StartOptions) => {
      // Ended by exit, so that nothing that a failed start left open can keep the process from ending.
      process.exit(await start(path, options));
    });
};

async function start(path: string, options: StartOptions): Promise<number> {
  const { runtimeDir, stateDir, group, logLevel, watch = false } = options;
  // Loaded here and not above, so that the other commands start without the daemon's code.
  const { loadConfig } = await import('../config/load.js');
  const { createLogger } = await import('../log/logger.js');
  const { runDaemon } = await import('../supervisor/daemon.js');
  try {
    const config = await loadConfig(path);
    return await runDaemon({
      config,
      configPath: path,
      loadConfig: () => loadConfig(path),
      watch,
      runtimeDir: runtimeDirectory(runtimeDir),
      stateDir: stateDirectory(stateDir),
      group,
      log: createLogger(logLevel),
    });
  } catch (error) {
    printError(messageOf(error));
    return daemonExitCode(error);
  }
}
