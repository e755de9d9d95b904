import { Command, CommanderError } from 'commander';
import { messageOf } from '../errors.js';
import { DaemonExit } from '../error-codes.js';
import { version } from '../version.js';
import { addCommand } from './add.js';
import { checkCommand } from './check.js';
import { delCommand } from './del.js';
import { doctorCommand } from './doctor.js';
import { CliExit, cliExitCode } from './exit-codes.js';
import { faultCommand } from './fault.js';
import { featuresCommand } from './features.js';
import { listCommand } from './list.js';
import { printError } from './output.js';
import { printable } from '../printable.js';
import { newBackendCommand } from './new-backend.js';
import { partitionsCommand } from './partitions.js';
import { recoverCommand } from './recover.js';
import { reloadCommand } from './reload.js';
import { resizeCommand } from './resize.js';
import { restartCommand } from './restart.js';
import { schemaCommand } from './schema.js';
import { startCommand } from './start.js';
import { statusCommand } from './status.js';
import { stopCommand } from './stop.js';
import { testBackendCommand } from './test-backend.js';
import { upgradeCommand } from './upgrade.js';

const commands = [
  startCommand,
  statusCommand,
  listCommand,
  addCommand,
  delCommand,
  stopCommand,
  recoverCommand,
  restartCommand,
  reloadCommand,
  upgradeCommand,
  resizeCommand,
  partitionsCommand,
  faultCommand,
  checkCommand,
  schemaCommand,
  featuresCommand,
  doctorCommand,
  testBackendCommand,
  newBackendCommand,
];

/** All of the command line. */
export function createProgram(): Command {
  const program = new Command('ublk-supervisor')
    .description('Serve Linux ublk block devices, one supervised process per hardware queue.')
    .version(version)
    .helpCommand(false)
    .showHelpAfterError('see: ublk-supervisor --help')
    .configureOutput({
      outputError: (text, write) =>
        write(
          text
            .replace(/^error: /, 'ublk-supervisor: ')
            .split('\n')
            .map(printable)
            .join('\n'),
        ),
    })
    .exitOverride();
  for (const register of commands) register(program);
  return program;
}

/** Runs one command line and leaves its exit code in `process.exitCode`. */
export async function run(args: readonly string[]): Promise<void> {
  try {
    await createProgram().parseAsync(args, { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) {
      const usage = args[0] === 'start' ? DaemonExit.usage : CliExit.usage;
      process.exitCode = error.exitCode === 0 ? CliExit.ok : usage;
    } else {
      printError(messageOf(error));
      process.exitCode = cliExitCode(error);
    }
  }
}
