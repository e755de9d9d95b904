// A RAM disk that dies or hangs of a read of some blocks, until there is a file `mended` beside it.

import { existsSync } from 'node:fs';

const BLOCK = 4096;
/** By block. */
const deaths = {
  8: () => {
    setTimeout(() => {
      throw new RangeError('block 8 is poison');
    }, 5);
    return new Promise(() => undefined);
  },
  9: () => new Promise(() => undefined),
};

const mended = new URL('mended', import.meta.url);

export default {
  name: 'poison',
  open(_options, context) {
    const size = 64 * BLOCK;
    const memory = context.sharedMemory('disk', size);
    return {
      size,
      async read(buffer, offset) {
        const death = buffer.length === BLOCK ? deaths[offset / BLOCK] : undefined;
        if (death !== undefined && !existsSync(mended)) return death();
        // Late enough that others are under way with it.
        await new Promise((resolve) => void setTimeout(resolve, 2));
        return memory.copy(buffer, 0, offset, offset + buffer.length);
      },
      async write(buffer, offset) {
        return buffer.copy(memory, offset);
      },
    };
  },
};
