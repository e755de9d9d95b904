// A RAM disk that answers later and out of order: of the requests under way the last one first.

const SIZE = 4 * 2 ** 20 + 4096;

export default {
  name: 'async-ram',
  open(_options, context) {
    const disk = context.sharedMemory('disk', SIZE);
    let waiting = [];
    const answerAll = () => {
      const last = waiting.reverse();
      waiting = [];
      for (const answer of last) answer();
    };
    const turn = () =>
      new Promise((resolve) => {
        if (waiting.push(resolve) === 1) setTimeout(answerAll, 1);
      });
    return {
      size: SIZE,
      async read(buffer, offset) {
        await turn();
        return disk.copy(buffer, 0, offset, offset + buffer.length);
      },
      async write(buffer, offset) {
        await turn();
        return buffer.copy(disk, offset);
      },
      flush: turn,
      async discard(offset, length) {
        await turn();
        disk.fill(0, offset, offset + length);
      },
      async writeZeroes(offset, length) {
        await turn();
        disk.fill(0, offset, offset + length);
      },
    };
  },
};
