// A RAM disk in which block N, when it is read, shows the fault of that number. What ends the process strikes once: the
// request comes again to the next generation.

const BLOCK = 4096;

const errno = (code) => Object.assign(new Error('on purpose'), { code });
const later = (act) => void setTimeout(act, 1);
const never = new Promise(() => undefined);

/** By name; the answer to the read. `due` is what it should be. */
const faults = {
  throwsErrno: () => {
    throw errno('ENOSPC');
  },
  rejectsErrno: () => Promise.reject(errno('ETIMEDOUT')),
  // The block layer knows no such status.
  throwsUnknownErrno: () => {
    throw errno('EROFS');
  },
  throws: () => {
    throw new TypeError('no such luck');
  },
  rejects: () => Promise.reject(new Error('much later')),
  throwsNothing: () => {
    throw undefined;
  },
  answersNothing: () => undefined,
  answersShort: (due) => due - 512,
  answersLong: async (due) => due + 1,
  answersNaN: () => NaN,
  answersText: (due) => String(due),
  answersTwice: (due) => ({
    then: (resolve, reject) => {
      resolve(due);
      resolve(0);
      reject(new Error('too late'));
    },
  }),
};

const deaths = {
  uncaught: () => {
    later(() => {
      throw new RangeError('out of nowhere');
    });
    return never;
  },
  unhandled: () => {
    void Promise.reject(new Error('nobody waits'));
    return never;
  },
  exits: () => process.exit(0),
  aborts: () => process.abort(),
  segfaults: () => {
    process.kill(process.pid, 'SIGSEGV');
    return never;
  },
  exhaustsTheHeap: () => {
    const hoard = [];
    // Numbers with a fraction: the collector need not look through them again and again.
    for (;;) hoard.push(new Array(4_000_000).fill(0.5));
  },
  neverAnswers: () => never,
  loops: () => {
    for (;;);
  },
};

export const faultNames = Object.keys(faults);
export const deathNames = Object.keys(deaths);

export default {
  name: 'faulty',
  open(_options, context) {
    const all = [...Object.values(faults), ...Object.values(deaths)];
    const size = 64 * BLOCK;
    const memory = context.sharedMemory('disk', size);
    const struck = context.sharedMemory('struck', all.length);
    return {
      size,
      read(buffer, offset) {
        const due = memory.copy(buffer, 0, offset, offset + buffer.length);
        const index = offset / BLOCK;
        const fault = buffer.length === BLOCK ? all[index] : undefined;
        if (fault === undefined || struck[index] === 1) return due;
        if (index >= faultNames.length) struck[index] = 1;
        return fault(due);
      },
      async write(buffer, offset) {
        return buffer.copy(memory, offset);
      },
    };
  },
};
