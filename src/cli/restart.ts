import { messageOf, SupervisorError } from '../errors.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

export const restartCommand: Register = (program) => {
  program
    .command('restart')
    .description('replace the queue processes of a device, with a pause for its users; without a name of all, in turn')
    .argument('[name]', 'the device')
    .addOption(runtimeDirOption())
    .action(async (name: string | undefined, options: RuntimeDirOption) => {
      const client = clientOf(options);
      const names = name === undefined ? (await client.status()).devices.map((device) => device.name) : [name];
      const failures: string[] = [];
      for (const one of names) {
        await client.restart(one).catch((error: unknown) => {
          if (names.length === 1) throw error;
          failures.push(messageOf(error));
        });
      }
      if (failures.length > 0) throw new SupervisorError(failures.join('\n'), { code: 'RESTART' });
    });
};
