// A RAM disk that does what is ordered in the first byte of its shared memory `orders`, once: the order is gone before
// it is obeyed, as the request comes again to the next generation.

const SIZE = 4 * 2 ** 20;

const never = new Promise(() => undefined);

const deeds = {
  1: () => process.abort(),
  2: () => never,
  3: () => {
    for (;;);
  },
  4: () => {
    setTimeout(() => {
      throw new Error('ordered');
    }, 1);
    return never;
  },
};

export default {
  name: 'soak',
  open(_options, context) {
    const disk = context.sharedMemory('disk', SIZE);
    const orders = context.sharedMemory('orders', 4096);
    const obey = () => {
      const deed = deeds[orders[0]];
      orders[0] = 0;
      return deed?.();
    };
    return {
      size: SIZE,
      async read(buffer, offset) {
        await obey();
        return disk.copy(buffer, 0, offset, offset + buffer.length);
      },
      async write(buffer, offset) {
        await obey();
        return buffer.copy(disk, offset);
      },
      flush: obey,
    };
  },
};
