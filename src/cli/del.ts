import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

interface DelOptions extends RuntimeDirOption {
  readonly force?: true;
}

export const delCommand: Register = (program) => {
  program
    .command('del')
    .description('remove a device, and the data of a RAM disk')
    .argument('<name>', 'the device')
    .option('--force', 'even if it is open or mounted')
    .addOption(runtimeDirOption())
    .action(async (name: string, options: DelOptions) => {
      await clientOf(options).remove(name, { force: options.force ?? false, removeData: true });
    });
};
