import { parseArgs } from 'node:util';
import { rm } from 'node:fs/promises';
import { benchIops, matchNames } from './iops.js';
import { benchMemory } from './memory.js';
import { benchPause } from './pause.js';
import type { BenchOptions } from './options.js';
import { benchScale } from './scale.js';

/**
 * Measures on the kernel it runs on, as root; scripts/bench brings it into a virtual machine where that is needed. It
 * passes no judgement: absolute numbers are this machine's, so what it prints is compared with something else that ran
 * in the same boot, a moment before.
 */

const usage = `usage: scripts/bench [--kernel VERSION] [pause|memory|iops]... | scale [OPTION...]

  --times N        pause: how often for each row (100)
  --rounds N       iops: how often everything is measured (3)
  --seconds S      iops: how long each time (0.2)
  --backend NAME   iops: only ${matchNames.join(', ')}
  --workload TEXT  iops: only workloads whose name has TEXT in it
  --devices N,...  scale: how many (50,250,500)
  --against ROOT   iops: compare with another built checkout instead of the kernel's own devices
`;

/** Without a name all but `scale`, which takes another virtual machine, and long. */
const benches = { pause: benchPause, memory: benchMemory, iops: benchIops, scale: benchScale };
const usual = ['pause', 'memory', 'iops'];

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      times: { type: 'string', default: '100' },
      rounds: { type: 'string', default: '3' },
      seconds: { type: 'string', default: '0.2' },
      backend: { type: 'string' },
      workload: { type: 'string', default: '' },
      against: { type: 'string' },
      devices: { type: 'string', default: '50,250,500' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(usage);
    return 0;
  }
  const chosen = positionals.length > 0 ? positionals : usual;
  const options: BenchOptions = {
    ...values,
    backend: values.backend,
    against: values.against,
    times: Number(values.times),
    rounds: Number(values.rounds),
    seconds: Number(values.seconds),
    devices: values.devices.split(',').map(Number),
  };
  const numbers = [options.times, options.rounds, options.seconds, ...options.devices];
  if (!chosen.every((name) => Object.hasOwn(benches, name)) || !numbers.every((number) => number > 0)) {
    process.stderr.write(usage);
    return 2;
  }
  for (const name of chosen) await benches[name as keyof typeof benches](options);
  // In a guest nothing lasts anyway, but on a real machine RAM disks would keep their files.
  await rm('/dev/shm/ublk-supervisor', { recursive: true, force: true });
  return 0;
}

process.exitCode = await main();
