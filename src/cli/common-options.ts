import { InvalidArgumentError, Option, type Command } from 'commander';
import { runtimeDirectory } from '../supervisor/runtime-dir.js';
import { createClient, type Client } from './client.js';

export interface RuntimeDirOption {
  readonly runtimeDir?: string;
}

export function runtimeDirOption(): Option {
  return new Option(
    '--runtime-dir <dir>',
    'where the control socket is (default: $RUNTIME_DIRECTORY or /run/ublk-supervisor)',
  );
}

export function clientOf(options: RuntimeDirOption): Client {
  return createClient(runtimeDirectory(options.runtimeDir));
}

/** An option's whole number; its range is for the configuration's schema to judge. */
export function wholeNumber(text: string): number {
  if (!/^[0-9]{1,15}$/.test(text)) throw new InvalidArgumentError('Expected a whole number.');
  return Number(text);
}

export type Register = (program: Command) => void;
