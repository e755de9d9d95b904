import { open } from 'node:fs/promises';
import { SupervisorError, errnoOf, reasonOf } from '../errors.js';
import { parseConfig } from './schema.js';
import type { Config } from './types.js';

const LARGEST_FILE = 2 ** 20;

/** Reads and checks a configuration file. Rejects with code `CONFIG`, one line per problem. */
export async function loadConfig(path: string): Promise<Config> {
  return parseConfig(await readText(path), path);
}

async function readText(path: string): Promise<string> {
  // One byte more than allowed, so that a file that is too large, or endless like /dev/zero, is noticed and not read.
  const buffer = Buffer.allocUnsafe(LARGEST_FILE + 1);
  let length = 0;
  try {
    const file = await open(path);
    try {
      for (;;) {
        const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
        length += bytesRead;
        if (bytesRead === 0 || length === buffer.length) break;
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    throw new SupervisorError(`reading configuration ${path} failed: ${reasonOf(error)}`, {
      code: 'CONFIG',
      errno: errnoOf(error),
      cause: error,
    });
  }
  if (length > LARGEST_FILE) {
    throw new SupervisorError(`${path}: larger than 1 MiB; expected a configuration`, { code: 'CONFIG' });
  }
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(buffer.subarray(0, length));
  } catch (error) {
    throw new SupervisorError(`${path}: is not UTF-8 text; expected a JSON file`, { code: 'CONFIG', cause: error });
  }
}
