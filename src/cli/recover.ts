import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

export const recoverCommand: Register = (program) => {
  program
    .command('recover')
    .description('restart the queue processes of a device that gave up or that is not recovered automatically')
    .argument('<name>', 'the device')
    .addOption(runtimeDirOption())
    .action(async (name: string, options: RuntimeDirOption) => {
      await clientOf(options).recover(name);
    });
};
