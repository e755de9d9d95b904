import { closeSync, constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { z } from 'zod';
import { show } from '../../src/config/problems.js';
import { SupervisorError, messageOf, reasonOf } from '../../src/errors.js';
import { indexZipEntry } from '../../src/native/binding.js';
import { printable } from '../../src/printable.js';
import type { Backend } from '../interface.js';
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

/** An entry of a zip archive, read-only. It is read through once, when the device is added. */
export const zipBackend: Backend<z.infer<typeof zipOptions>> = {
  name: 'zip',
  options: zipOptions,
  async open({ path, entry: wanted }, { device, blockSize, inherited }) {
    // Opened anew: there is no lock in it, and nothing is said of the entry's size.
    for (const fd of inherited?.files ?? []) closeSync(fd);
    const refuse = (reason: string, cause: unknown): SupervisorError =>
      new SupervisorError(`opening archive ${path} failed: ${printable(reason).slice(0, LONGEST_REASON)}`, {
        code: 'BACKEND',
        device,
        cause,
      });
    let archive: FileHandle;
    try {
      // Not to wait for a writer, if it is a pipe.
      archive = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      throw refuse(reasonOf(error), error);
    }
    try {
      const { index, bytes } = await indexEntry(archive, wanted);
      return {
        size: Math.ceil(bytes / blockSize) * blockSize,
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
        created: false,
        dataPaths: ['copy'] as const,
        close: async () => {
          closeSync(index);
          await archive.close();
        },
        remove: () => Promise.resolve(),
      };
    } catch (error) {
      await archive.close();
      throw refuse(messageOf(error), error);
    }
  },
};

async function indexEntry(archive: FileHandle, wanted: string | undefined) {
  const status = await archive.stat();
  if (!status.isFile()) throw new Error('it is not a regular file');
  const entry = await findEntry(archive, status.size, wanted);
  try {
    return { index: await indexZipEntry(archive.fd, entry), bytes: entry.bytes };
  } catch (error) {
    throw new Error(`its entry ${show(entry.name)} cannot be served: ${messageOf(error)}`, { cause: error });
  }
}
