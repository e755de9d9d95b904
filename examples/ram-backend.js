import { defineBackend } from 'ublk-supervisor';
import { z } from 'zod';

/** A RAM disk: its memory is shared by all queue processes, and gone with the device. */
export default defineBackend({
  name: 'ram-backend',
  options: z.strictObject({ size: z.int().multipleOf(4096) }),
  open({ size }, context) {
    const disk = context.sharedMemory('disk', size);
    return {
      size,
      read: (buffer, offset) => disk.copy(buffer, 0, offset, offset + buffer.length),
      write: (buffer, offset) => buffer.copy(disk, offset),
      writeZeroes: (offset, length) => disk.fill(0, offset, offset + length),
    };
  },
});
