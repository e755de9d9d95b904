import { Option } from 'commander';
import { loadConfig } from '../config/load.js';
import { messageOf } from '../errors.js';
import { daemonExitCode } from '../supervisor/exit-codes.js';
import { createLogger, logLevels, type Level } from '../supervisor/log.js';
import { assertReady } from '../supervisor/preflight.js';
import { runtimeDirectory } from '../supervisor/runtime-dir.js';
import { runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';
import { printError } from './output.js';

interface StartOptions extends RuntimeDirOption {
  readonly logLevel: Level;
}

export const startCommand: Register = (program) => {
  program
    .command('start')
    .description('serve the devices of a configuration; stays in the foreground')
    .argument('<config>', 'configuration file; see ublk-supervisor.json(5)')
    .addOption(runtimeDirOption())
    .addOption(new Option('--log-level <level>', 'least important messages to log').choices(logLevels).default('info'))
    .action(async (path: string, options: StartOptions) => {
      // Ended by exit, so that nothing that a failed start left open can keep the process from ending.
      process.exit(await start(path, options));
    });
};

async function start(path: string, { runtimeDir, logLevel }: StartOptions): Promise<number> {
  try {
    const config = await loadConfig(path);
    const log = createLogger(logLevel);
    assertReady((warning) => {
      log.warn(warning);
    });
    const { runDaemon } = await import('../supervisor/daemon.js');
    return await runDaemon({ config, runtimeDir: runtimeDirectory(runtimeDir), log });
  } catch (error) {
    printError(messageOf(error));
    return daemonExitCode(error);
  }
}
