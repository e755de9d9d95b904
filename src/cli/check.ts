import { messageOf, SupervisorError } from '../errors.js';
import type { Register } from './common-options.js';
import { checkExitCode } from './exit-codes.js';
import { printError } from './output.js';

export const checkCommand: Register = (program) => {
  program
    .command('check')
    .description('check a configuration and say what is wrong with it')
    .argument('<config>', 'configuration file; see ublk-supervisor.json(5)')
    .option('--configuration-only', 'look at no file and load no backend')
    .action(async (path: string, { configurationOnly = false }: { readonly configurationOnly?: boolean }) => {
      const { loadConfig } = await import('../config/load.js');
      const { problemsOfBackends } = await import('./check-backends.js');
      try {
        const { devices } = await loadConfig(path);
        const problems = configurationOnly ? [] : await problemsOfBackends(devices);
        if (problems.length > 0) {
          throw new SupervisorError(problems.map((problem) => `${path}: ${problem}`).join('\n'), { code: 'CONFIG' });
        }
      } catch (error) {
        printError(messageOf(error));
        process.exitCode = checkExitCode(error);
      }
    });
};
