// Always has something to do: a read takes CPU time and is answered at once, one in 64 a moment later. How late its timer came at
// worst, in milliseconds, is in shared memory. It takes time to close, and leaves a file when it has.
import { writeFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';

const SIZE = 2 ** 20;
const HIT_MS = 0.3;
const TICK_MS = 100;
const CLOSING_MS = 400;

export default {
  name: 'busy',
  open(_options, { queue, sharedMemory }) {
    const latest = new Float64Array(sharedMemory(`late${queue}`, 8).buffer);
    let due = performance.now() + TICK_MS;
    const timer = setInterval(() => {
      latest[0] = Math.max(latest[0], performance.now() - due);
      due = performance.now() + TICK_MS;
    }, TICK_MS);
    let reads = 0;
    return {
      size: SIZE,
      read(buffer) {
        const end = performance.now() + HIT_MS;
        while (performance.now() < end);
        reads += 1;
        return reads % 64 === 0 ? setTimeout(1, buffer.length) : buffer.length;
      },
      async close() {
        clearInterval(timer);
        // The others have nothing to do.
        if (queue > 0) await setTimeout(CLOSING_MS);
        writeFileSync(`/run/closed-${queue}`, '');
      },
    };
  },
};
