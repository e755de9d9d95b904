import {
  clientOf,
  runtimeDirOption,
  setting,
  wholeNumber,
  type Register,
  type RuntimeDirOption,
  type Setting,
} from './common-options.js';
import { print } from './output.js';

interface AddOptions extends RuntimeDirOption {
  readonly name: string;
  readonly number?: number;
  readonly queues?: number;
  readonly depth?: number;
  readonly blockSize?: number;
  readonly dataPath?: string;
  readonly readOnly?: true;
}

export const addCommand: Register = (program) => {
  program
    .command('add')
    .description('add a device and print its path when it is usable; the device is not added to the configuration file')
    .argument('<type>', 'backend: file, ram, zip, null or the path of one of your own')
    .argument(
      '[key=value...]',
      "the backend's settings, such as size=512MiB, date='\"20240131\"' (text) or cache='{\"size\":4096}'",
      setting,
      [],
    )
    .requiredOption('--name <name>', 'what to call the device')
    .option('-n, --number <id>', 'N of /dev/ublkbN', wholeNumber)
    .option('-q, --queues <count>', 'hardware queues', wholeNumber)
    .option('-d, --depth <count>', 'requests per queue that may be outstanding', wholeNumber)
    .option('-r, --read-only', 'a device that cannot be written to')
    .option('--block-size <bytes>', 'logical block size', wholeNumber)
    .option('--data-path <path>', 'auto, copy, user-copy or zero-copy')
    .addOption(runtimeDirOption())
    .action(async (type: string, settings: readonly Setting[], options: AddOptions) => {
      const { name, number: id, queues, depth, blockSize, dataPath, readOnly } = options;
      const backend = { ...Object.fromEntries(settings), type };
      // The supervisor is in another directory.
      const directory = process.cwd();
      // What was not given is left out by JSON.stringify, and gets the schema's default.
      const device = { name, id, queues, depth, blockSize, readOnly, dataPath, directory, backend };
      const { path } = await clientOf(options).add(device);
      print(path ?? '');
    });
};
