import ram from '../examples/ram-backend.js';

/** The example's RAM disk with methods that answer later, as those of a backend that waits for something do. */
export default {
  ...ram,
  async open(options, context) {
    const disk = await ram.open(options, context);
    return {
      ...disk,
      read: async (buffer, offset) => disk.read(buffer, offset),
      write: async (buffer, offset) => disk.write(buffer, offset),
    };
  },
};
