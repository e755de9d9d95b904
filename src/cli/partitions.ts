import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';
import { print } from './output.js';

export const partitionsCommand: Register = (program) => {
  program
    .command('partitions')
    .description('look at the partition table of a device again, and print the partitions')
    .argument('<name>', 'the device')
    .addOption(runtimeDirOption())
    .action(async (name: string, options: RuntimeDirOption) => {
      for (const path of await clientOf(options).lookForPartitions(name)) print(path);
    });
};
