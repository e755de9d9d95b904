import { close, closeSync, constants, type Stats } from 'node:fs';
import { open, stat, type FileHandle } from 'node:fs/promises';
import { promisify } from 'node:util';
import * as z from 'zod';
import { show } from '../../src/problems.js';
import { SupervisorError, errnoOf, messageOf, reasonOf } from '../../src/errors.js';
import { indexZipEntry } from './indexer.js';
import { printable } from '../../src/printable.js';
import { HOW_TO_SERVE, blockSizeOf, containerOf } from '../disk-image.js';
import type { Backend, Choice } from '../interface.js';
import { filePath } from '../options.js';
import { findEntry, type ArchiveEntry } from './archive.js';
import { entryReader } from './entry-reader.js';

/** Names in an archive can be 64 KiB long. */
const LONGEST_REASON = 300;
const SECTOR = 512;
const dataPaths = ['copy'] as const;
const KEPT = 'what was opened is served, for as long as there is a process of ours that has it open';

export const zipOptions = z.strictObject({
  type: z.literal('zip'),
  path: filePath.describe('the archive; it must not change while it is served'),
  entry: z
    .string()
    .min(1, { error: 'expected the name of an entry, got ""' })
    .optional()
    .describe('the entry to serve; left out, the only or the largest one'),
});

/** An entry of a zip archive, read-only. It is read through once, when the device is added. */
export const zipBackend: Backend<z.infer<typeof zipOptions>> = {
  name: 'zip',
  options: zipOptions,
  mayHang: true,
  dataPaths,
  async look({ path }, { device }) {
    try {
      assertIsFile(await stat(path));
    } catch (error) {
      throw refusal(path, device, reasonOf(error), error);
    }
    // Any number of devices may read it.
    return null;
  },
  async open({ path, entry: wanted }, { device, blockSize: wantedBlockSize, inherited }) {
    const left = inherited?.files ?? [];
    let archive: FileHandle;
    try {
      // What is served is what was opened, whatever the path names by now. Its index is of whichever code made it.
      const place = left[0] === undefined ? path : `/proc/self/fd/${left[0]}`;
      // Not to wait for a writer, if it is a pipe.
      archive = await open(place, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      throw refusal(path, device, reasonOf(error), error);
    } finally {
      for (const fd of left) await promisify(close)(fd);
    }
    try {
      const hasUsers = inherited !== undefined && inherited.size !== null;
      const known = hasUsers ? inherited.announced?.identity : undefined;
      const { entry, identity } = await entryOf(archive, wanted, known);
      // It costs little, and only the receiver closes the index.
      const blocks = await blocksOf(archive, entry, wantedBlockSize);
      const index = await indexOf(archive, entry);
      return {
        // Behind its end there are zeros.
        size: Math.ceil(entry.bytes / blocks.blockSize) * blocks.blockSize,
        ...blocks,
        facts: {
          volatileCache: false,
          fua: false,
          discard: false,
          writeZeroes: false,
          readOnly: true,
          rotational: false,
          idempotentWrites: true,
        },
        files: [archive.fd, index],
        identity,
        ...((await isNamed(archive, path))
          ? {}
          : { warning: `archive ${path} is gone, or another file by now; ${KEPT}` }),
        created: false,
        dataPaths,
        close: async () => {
          closeSync(index);
          await archive.close();
        },
        remove: () => Promise.resolve(),
      };
    } catch (error) {
      await archive.close();
      throw refusal(path, device, messageOf(error), error);
    }
  },
};

function refusal(path: string, device: string, reason: string, cause: unknown): SupervisorError {
  const message = `opening archive ${path} failed: ${printable(reason).slice(0, LONGEST_REASON)}`;
  return new SupervisorError(message, { code: 'BACKEND', errno: errnoOf(cause), device, cause });
}

function assertIsFile(status: Stats): void {
  if (!status.isFile()) throw new Error('it is not a regular file');
}

/** `known`: the identity of what the users of the device have; undefined: there are none, or it is not known. */
async function entryOf(archive: FileHandle, wanted: string | undefined, known: string | undefined) {
  const status = await archive.stat();
  assertIsFile(status);
  const entry = await findEntry(archive, status.size, wanted);
  const { name, bytes, crc } = entry;
  // Wherever it is, the same data is as good.
  const identity = `CRC-32 ${crc.toString(16).padStart(8, '0')} and ${bytes} bytes`;
  if (known !== undefined && known !== identity) {
    throw new Error(`its entry ${show(name)} has ${identity}, its device was made of ${known}; put that back`);
  }
  return { entry, identity };
}

/** Reads it through. Its descriptor is the caller's to close. */
async function indexOf(archive: FileHandle, entry: ArchiveEntry): Promise<number> {
  try {
    return await indexZipEntry(archive.fd, entry);
  } catch (error) {
    throw new Error(`its entry ${show(entry.name)} cannot be served: ${messageOf(error)}`, { cause: error });
  }
}

/** `wanted`: null: the one that the entry was made for. */
async function blocksOf(
  archive: FileHandle,
  entry: ArchiveEntry,
  wanted: number | null,
): Promise<{ readonly blockSize: number; readonly choices: readonly Choice[] }> {
  if (wanted !== null) return { blockSize: wanted, choices: [] };
  await using contents = entryReader(archive, entry);
  const container = await containerOf(contents.read, entry.bytes);
  if (container !== null) {
    throw new Error(`its entry ${show(entry.name)} is ${container} image; unpack and convert it ${HOW_TO_SERVE}`);
  }
  const { bytes, why } = await blockSizeOf(contents.read, entry.bytes, SECTOR);
  return { blockSize: bytes, choices: [{ what: 'blockSize', value: bytes, why }] };
}

async function isNamed(archive: FileHandle, path: string): Promise<boolean> {
  const opened = await archive.stat({ bigint: true });
  const named = await stat(path, { bigint: true }).catch(() => null);
  return named?.dev === opened.dev && named.ino === opened.ino;
}
