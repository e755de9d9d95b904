import * as z from 'zod';
import { SupervisorError } from '../../src/errors.js';
import { writableFacts, type Backend, type OpenBackend } from '../interface.js';
import { formatSize } from '../../src/units.js';
import { deviceSize } from '../options.js';
import { SHARED_MEMORY_DIRECTORY, roomInSharedMemory } from '../shared-memory.js';
import { openRamFile } from './ram-file.js';

/** Its bitmap of written pages takes half a GiB at once; eight times as much could not be mapped any more. */
const LARGEST_RAM_DISK = 2 ** 44;

const dataPaths = ['user-copy', 'copy'] as const;

const atMost = (size: number): string =>
  `expected at most ${formatSize(LARGEST_RAM_DISK)} for a RAM disk, got ${size} bytes`;

export const ramOptions = z.strictObject({
  type: z.literal('ram'),
  size: deviceSize
    .refine((size) => size <= LARGEST_RAM_DISK, {
      error: ({ input }) => atMost(Number(input)),
    })
    .describe('size of the RAM disk; memory is used as it is written'),
});

const tooLarge = (device: string, size: number): SupervisorError =>
  new SupervisorError(`resizing RAM disk ${device} failed: ${atMost(size)}`, { code: 'CONFIG', device });

/** A RAM disk in a named tmpfs file, so that its data outlives every process of ours; memory is used as it is written. */
export const ramBackend: Backend<z.infer<typeof ramOptions>> = {
  name: 'ram',
  options: ramOptions,
  dataPaths,
  async open(options, context) {
    const file = await openRamFile(context.device, options.size, context.inherited);
    const room = await roomInSharedMemory();
    const ofSize = (size: number): OpenBackend => ({
      size,
      facts: writableFacts,
      files: [file.fd],
      created: file.created,
      ...(size <= room
        ? {}
        : {
            warning: `${SHARED_MEMORY_DIRECTORY} holds ${formatSize(room)} at most; what is written beyond that fails with ENOSPC`,
          }),
      dataPaths,
      close: () => {
        file.close();
        return Promise.resolve();
      },
      remove: () => file.remove(),
      resize: (wanted) => {
        if (wanted > LARGEST_RAM_DISK) return Promise.reject(tooLarge(context.device, wanted));
        if (wanted > size) file.grow(wanted);
        return Promise.resolve(ofSize(wanted));
      },
      trim: () => file.trim(size),
    });
    return ofSize(options.size);
  },
};
