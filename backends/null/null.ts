import * as z from 'zod';
import { writableFacts, type Backend, type OpenBackend } from '../interface.js';
import { deviceSize } from '../options.js';

export const nullOptions = z.strictObject({
  type: z.literal('null'),
  size: deviceSize.describe('size of the device'),
});

// With user-copy a write moves no data at all, and no per-tag buffers are needed.
const dataPaths = ['user-copy', 'copy'] as const;

/** Reads zeros, forgets writes. For measuring everything but a store. */
export const nullBackend: Backend<z.infer<typeof nullOptions>> = {
  name: 'null',
  options: nullOptions,
  dataPaths,
  open(options) {
    const ofSize = (size: number): OpenBackend => ({
      size,
      facts: writableFacts,
      files: [],
      created: false,
      dataPaths,
      close: () => Promise.resolve(),
      remove: () => Promise.resolve(),
      resize: (wanted) => Promise.resolve(ofSize(wanted)),
    });
    return Promise.resolve(ofSize(options.size));
  },
};
