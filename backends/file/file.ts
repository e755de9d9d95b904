import * as z from 'zod';
import type { Backend, OpenBackend } from '../interface.js';
import { deviceSize, filePath } from '../options.js';
import { lookAtStore } from './look.js';
import { openStore, type Store } from './store.js';

export const fileOptions = z.strictObject({
  type: z.literal('file'),
  path: filePath.describe('a file or a block device'),
  size: deviceSize
    .optional()
    .describe('size of the device; a file that is missing or empty is made that large, sparse'),
  direct: z
    .literal(['auto', true, false])
    .default('auto')
    .describe('O_DIRECT, past the page cache; auto: where the file system does it in blocks of blockSize'),
  readOnly: z.boolean().default(false).describe('never written to'),
  preallocate: z.boolean().default(false).describe('a file that is created gets its space at once'),
  sync: z.boolean().default(false).describe('every write is on stable storage before it is answered'),
});

// User-copy would be the copy path with one more operation: its data, too, goes through a buffer.
const dataPaths = ['zero-copy', 'copy'] as const;

/** A file or block device of the user's, which is never removed. */
export const fileBackend: Backend<z.infer<typeof fileOptions>> = {
  name: 'file',
  options: fileOptions,
  mayHang: true,
  dataPaths,
  async look(options, { readOnly, blockSize }) {
    return lookAtStore({ ...options, readOnly: options.readOnly || readOnly }, blockSize);
  },
  async open(options, context) {
    const readOnly = options.readOnly || context.readOnly;
    const opened = await openStore({ ...options, readOnly }, context.blockSize, context.inherited);
    const serving = (store: Store): OpenBackend => ({
      size: store.size,
      blockSize: store.blockSize,
      choices: store.choices,
      ...(store.warning === null ? {} : { warning: store.warning }),
      facts: {
        volatileCache: !options.sync,
        fua: !options.sync,
        discard: store.canDiscard,
        // O_DSYNC is for writes; not every file system has fallocate obey it. Then the kernel writes the zeros.
        writeZeroes: !store.readOnly && !options.sync,
        readOnly: store.readOnly,
        rotational: store.rotational,
        idempotentWrites: true,
      },
      files: [store.fd],
      identity: store.identity,
      // Even a file that was made a moment ago is the user's, who named it.
      created: false,
      dataPaths: store.takesClientMemory ? dataPaths : ['copy'],
      check: () => store.check(),
      close: () => store.close(),
      remove: () => Promise.resolve(),
      resize: async (size) => serving(await store.resize(size)),
      trim: () => store.trim(),
    });
    return serving(opened);
  },
};
