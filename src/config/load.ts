import { open, readlink, realpath, type FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import { SupervisorError, errnoOf, reasonOf } from '../errors.js';
import { writableByOthers } from '../trusted.js';
import { parseConfig } from './schema.js';
import type { Config } from './types.js';

const LARGEST_FILE = 2 ** 20;

/**
 * Reads and checks a configuration file. Rejects with code `CONFIG`, one line per problem; for root also when others may
 * write to the file or to a folder above it.
 */
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
      await assertTrusted(file, path);
      for (;;) {
        const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
        length += bytesRead;
        if (bytesRead === 0 || length === buffer.length) break;
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof SupervisorError) throw error;
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

/** Looks at the open file, which cannot be exchanged any more, and at the folder that its relative paths start from. */
async function assertTrusted(file: FileHandle, path: string): Promise<void> {
  const opened = await readlink(`/proc/self/fd/${file.fd}`);
  const found = await file.stat();
  // A pipe has no place; who made it started us. A device is everybody's.
  const places = found.isFile() ? [opened, await realpath(dirname(path))] : [];
  for (const place of places) {
    const untrusted = await writableByOthers(place, { sticky: true });
    if (untrusted === undefined) continue;
    throw new SupervisorError(
      `reading configuration ${path} failed: others may write to ${untrusted}; chown root and chmod go-w`,
      { code: 'CONFIG' },
    );
  }
}
