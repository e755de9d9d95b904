import { setTimeout } from 'node:timers/promises';

/** Takes memory, as many MiB as the first argument says, and looks again and again whether it has what was written to it. */

const PAGE = 4096;
const MIB = 2 ** 20;

const chunks = Array.from({ length: Number(process.argv[2]) }, () => Buffer.allocUnsafeSlow(MIB).fill(0));
const ended = new AbortController();
process.once('SIGTERM', () => ended.abort());
for (let pass = 1; !ended.signal.aborted; pass++) {
  for (const [index, chunk] of chunks.entries()) {
    for (let offset = 0; offset < MIB; offset += PAGE) {
      const place = index * MIB + offset;
      if (pass > 1 && (chunk.readDoubleLE(offset) !== place || chunk.readDoubleLE(offset + 8) !== pass - 1)) {
        throw new Error(`memory at ${place} is not as it was written in pass ${pass - 1}`);
      }
      chunk.writeDoubleLE(place, offset);
      chunk.writeDoubleLE(pass, offset + 8);
    }
    // Lets SIGTERM in.
    await setTimeout(0);
  }
  process.stdout.write(`pass ${pass}\n`);
}
