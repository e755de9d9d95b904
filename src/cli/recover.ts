import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

interface RecoverOptions extends RuntimeDirOption {
  readonly clearQuarantine?: true;
}

export const recoverCommand: Register = (program) => {
  program
    .command('recover')
    .description('restart the queue processes of a device that gave up or that is not recovered automatically')
    .argument('<name>', 'the device')
    .option('--clear-quarantine', 'also give requests to the backend again that are refused because they crashed it')
    .addOption(runtimeDirOption())
    .action(async (name: string, options: RecoverOptions) => {
      await clientOf(options).recover(name, { clearQuarantine: options.clearQuarantine ?? false });
    });
};
