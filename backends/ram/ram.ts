import * as z from 'zod';
import type { Backend, OpenBackend } from '../interface.js';
import { deviceSize } from '../options.js';
import { openRamFile } from './ram-file.js';

export const ramOptions = z.strictObject({
  type: z.literal('ram'),
  size: deviceSize.describe('size of the RAM disk; memory is used as it is written'),
});

/** A RAM disk in a named tmpfs file, so that its data outlives every process of ours; memory is used as it is written. */
export const ramBackend: Backend<z.infer<typeof ramOptions>> = {
  name: 'ram',
  options: ramOptions,
  async open(options, context) {
    const file = await openRamFile(context.device, options.size, context.inherited);
    const ofSize = (size: number): OpenBackend => ({
      size,
      facts: {
        // Nothing to flush, but announcing a cache lets FLUSH and FUA through, so that they are counted and can be tested.
        volatileCache: true,
        fua: true,
        discard: true,
        writeZeroes: true,
        readOnly: false,
        rotational: false,
        idempotentWrites: true,
      },
      files: [file.fd],
      created: file.created,
      dataPaths: ['user-copy', 'copy'] as const,
      close: () => {
        file.close();
        return Promise.resolve();
      },
      remove: () => file.remove(),
      resize: (wanted) => {
        if (wanted > size) file.grow(wanted);
        return Promise.resolve(ofSize(wanted));
      },
      trim: () => file.trim(size),
    });
    return ofSize(options.size);
  },
};
