import { SupervisorError } from '../errors.js';
import type { PlanEntry } from '../api/status.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

interface ReloadOptions extends RuntimeDirOption {
  readonly dryRun?: true;
  readonly json?: true;
}

export const reloadCommand: Register = (program) => {
  program
    .command('reload')
    .description('read the configuration again and make the devices those of it')
    .option('--dry-run', 'only print what that would do')
    .option('-J, --json', 'print JSON')
    .addOption(runtimeDirOption())
    .action(async (options: ReloadOptions) => {
      const plan = await clientOf(options).reload({ dryRun: options.dryRun ?? false });
      process.stdout.write(options.json ? `${JSON.stringify({ devices: plan }, null, 2)}\n` : plan.map(line).join(''));
      if (plan.some(({ action }) => action === 'refuse')) {
        throw new SupervisorError('a reload would be refused', { code: 'REFUSED' });
      }
    });
};

function line({ action, device, changes, reason }: PlanEntry): string {
  const details = reason ?? changes.join(', ');
  return `${action} ${device}${details === '' ? '' : `: ${details}`}\n`;
}
