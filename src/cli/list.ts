import { InvalidArgumentError, Option } from 'commander';
import type { DeviceStatus } from '../api/status.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';
import { deviceColumns, usualDeviceColumns } from './device-columns.js';
import { print, printJson } from './output.js';
import { chooseColumns, formatTable, tableObjects, type Column } from './table.js';

interface ListOptions extends RuntimeDirOption {
  readonly json?: true;
  readonly output: readonly Column<DeviceStatus>[];
  readonly noheadings?: boolean;
  readonly raw?: boolean;
  readonly bytes?: boolean;
}

export const listCommand: Register = (program) => {
  program
    .command('list')
    .description('list the devices')
    .option('-J, --json', 'one JSON document, sizes in bytes')
    .addOption(
      new Option('-o, --output <columns>', 'columns to show; +COLUMN adds to the usual ones')
        .argParser(columns)
        .default(columns(undefined), usualDeviceColumns.join(',')),
    )
    .option('--noheadings', 'no line of column names')
    .option('--raw', 'single spaces between the columns, blanks in values escaped')
    .option('-b, --bytes', 'sizes in bytes')
    .addOption(runtimeDirOption())
    .addHelpText(
      'after',
      `\nColumns:\n${deviceColumns.map(({ name, description }) => `  ${name.padEnd(11)} ${description}`).join('\n')}`,
    )
    .action(
      async ({ json, output, noheadings = false, raw = false, bytes: exact = false, ...options }: ListOptions) => {
        const { devices } = await clientOf(options).status();
        if (json) printJson({ devices: tableObjects(output, devices) });
        else for (const line of formatTable(output, devices, { headings: !noheadings, raw, exact })) print(line);
      },
    );
};

function columns(choice: string | undefined): readonly Column<DeviceStatus>[] {
  const chosen = chooseColumns(choice, deviceColumns, usualDeviceColumns);
  if (chosen) return chosen;
  throw new InvalidArgumentError(`Columns: ${deviceColumns.map(({ name }) => name).join(', ')}.`);
}
