import { closeSync, constants, readSync } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { z } from 'zod';
import { show } from '../../src/config/problems.js';
import { SupervisorError, messageOf, reasonOf } from '../../src/errors.js';
import { indexZipEntry } from '../../src/native/binding.js';
import { printable } from '../../src/printable.js';
import type { Backend, BackendFacts, OpenBackend } from '../interface.js';
import { filePath } from '../options.js';
import { findEntry } from './archive.js';

/** Names in an archive can be 64 KiB long. */
const LONGEST_REASON = 300;

export const zipOptions = z.strictObject({
  type: z.literal('zip'),
  path: filePath.describe('the archive; it must not change while it is served'),
  entry: z
    .string()
    .min(1, { error: 'expected the name of an entry, got ""' })
    .optional()
    .describe('the entry to serve; left out, the only or the largest one'),
});

const FACTS: BackendFacts = {
  volatileCache: false,
  fua: false,
  discard: false,
  writeZeroes: false,
  readOnly: true,
  rotational: false,
  idempotentWrites: true,
};

/** An entry of a zip archive, read-only. It is read through once, when the device is added. */
export const zipBackend: Backend<z.infer<typeof zipOptions>> = {
  name: 'zip',
  options: zipOptions,
  async open({ path, entry: wanted }, { device, blockSize, inherited }) {
    const refuse = (reason: string, cause: unknown): SupervisorError =>
      new SupervisorError(`opening archive ${path} failed: ${printable(reason).slice(0, LONGEST_REASON)}`, {
        code: 'BACKEND',
        device,
        cause,
      });
    const opened = (archive: number, index: number, close: () => Promise<void>): OpenBackend => {
      const { bytes, crc } = zipIndexEntry(index);
      return {
        size: Math.ceil(bytes / blockSize) * blockSize,
        facts: FACTS,
        files: [archive, index],
        // Another archive with the same data is as good.
        identity: `CRC-32 ${crc.toString(16)} of ${String(bytes)} bytes`,
        created: false,
        dataPaths: ['copy'],
        close,
        remove: () => Promise.resolve(),
      };
    };
    // They are what is being served, whatever the path names by now.
    const [heldArchive, heldIndex] = inherited?.files ?? [];
    if (heldArchive !== undefined && heldIndex !== undefined) {
      const close = (): Promise<void> => {
        for (const fd of [heldArchive, heldIndex]) closeSync(fd);
        return Promise.resolve();
      };
      try {
        return opened(heldArchive, heldIndex, close);
      } catch (error) {
        await close();
        throw refuse(messageOf(error), error);
      }
    }
    let archive: FileHandle;
    try {
      // Not to wait for a writer, if it is a pipe.
      archive = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      throw refuse(reasonOf(error), error);
    }
    try {
      const index = await indexEntry(archive, wanted);
      const backend = opened(archive.fd, index, async () => {
        closeSync(index);
        await archive.close();
      });
      const lost = inherited === undefined || inherited.size === null ? undefined : inherited.announced?.identity;
      if (lost === undefined || lost === backend.identity) return backend;
      closeSync(index);
      throw new Error(`its entry has ${String(backend.identity)}, and what its device is of has ${lost}; put that back`);
    } catch (error) {
      await archive.close();
      throw refuse(messageOf(error), error);
    }
  },
};

async function indexEntry(archive: FileHandle, wanted: string | undefined): Promise<number> {
  const status = await archive.stat();
  if (!status.isFile()) throw new Error('it is not a regular file');
  const entry = await findEntry(archive, status.size, wanted);
  try {
    return await indexZipEntry(archive.fd, entry);
  } catch (error) {
    throw new Error(`its entry ${show(entry.name)} cannot be served: ${messageOf(error)}`, { cause: error });
  }
}

const INDEX_MAGIC = 0x31786469_70697a75n;

/** From the beginning of an index, `ZipIndex` of index.hpp, which is sealed: its size and checksum. */
function zipIndexEntry(index: number): { bytes: number; crc: number } {
  const head = Buffer.alloc(40);
  if (readSync(index, head, 0, head.length, 0) < head.length || head.readBigUInt64LE(0) !== INDEX_MAGIC) {
    throw new Error('its index is none');
  }
  return { bytes: Number(head.readBigUInt64LE(24)), crc: head.readUInt32LE(32) };
}
