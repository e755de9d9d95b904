import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

interface ResizeOptions extends RuntimeDirOption {
  readonly force?: true;
}

export const resizeCommand: Register = (program) => {
  program
    .command('resize')
    .description('give a device another size while it is served (kernel 6.16)')
    .argument('<name>', 'the device')
    .argument('<size>', 'its new size, such as 2GiB')
    .option('--force', 'smaller even if it is open or mounted, which loses what lies behind the new end')
    .addOption(runtimeDirOption())
    .action(async (name: string, size: string, options: ResizeOptions) => {
      await clientOf(options).resize(name, { size, force: options.force ?? false });
    });
};
