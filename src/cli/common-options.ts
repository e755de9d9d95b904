import { InvalidArgumentError, Option, type Command } from 'commander';
import { parseJson } from '../config/json.js';
import { messageOf } from '../errors.js';
import { runtimeDirectory } from '../api/places.js';
import { createClient, type Client } from '../api/client.js';

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

export type Setting = readonly [key: string, value: unknown];

/**
 * One more `key=value` of a backend. Plain decimal numbers, `true` and `false` are what they look like, and what begins as
 * JSON does, with `"`, `{` or `[`, is that. Everything else is text.
 */
export function setting(text: string, earlier: readonly Setting[]): readonly Setting[] {
  const split = text.indexOf('=');
  if (split < 1) throw new InvalidArgumentError('Expected key=value.');
  const key = text.slice(0, split);
  if (key === 'type' || earlier.some(([known]) => known === key)) throw new InvalidArgumentError('It is given twice.');
  return [...earlier, [key, valueOf(key, text.slice(split + 1))]];
}

/** The inverse of `setting`. */
export function settingText([key, value]: Setting): string {
  return `${key}=${JSON.stringify(value)}`;
}

function valueOf(key: string, text: string): unknown {
  if (/^["{[]/.test(text)) {
    try {
      return parseJson(text, key);
    } catch (error) {
      throw new InvalidArgumentError(`${messageOf(error)}; text that begins so goes into double quotes.`);
    }
  }
  if (text === 'true' || text === 'false') return text === 'true';
  return /^-?(0|[1-9][0-9]*)(\.[0-9]+)?$/.test(text) && Math.abs(Number(text)) <= Number.MAX_SAFE_INTEGER
    ? Number(text)
    : text;
}

export type Register = (program: Command) => void;
