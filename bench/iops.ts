import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { runFio, type Workload } from './fio.js';
import type { BenchOptions } from './main.js';
import { Served } from './served.js';
import { median, spread, table } from './statistics.js';

const run = promisify(execFile);

async function shell(script: string): Promise<string> {
  return (await run('sh', ['-ec', script])).stdout.trim();
}

type Access = Omit<Workload, 'path' | 'seconds'> & { readonly name: string };

const workloads: readonly Access[] = [
  { name: '4k read, depth 1', pattern: 'randread', blockBytes: 4096, depth: 1, jobs: 1 },
  { name: '4k read, depth 1, 2 jobs', pattern: 'randread', blockBytes: 4096, depth: 1, jobs: 2 },
  { name: '4k read, depth 64', pattern: 'randread', blockBytes: 4096, depth: 64, jobs: 1 },
  { name: '4k read, depth 64, 2 jobs', pattern: 'randread', blockBytes: 4096, depth: 64, jobs: 2 },
  { name: '4k write, depth 64', pattern: 'randwrite', blockBytes: 4096, depth: 64, jobs: 1 },
  { name: '128k read, depth 16', pattern: 'randread', blockBytes: 131072, depth: 16, jobs: 1 },
  { name: '128k write, depth 16', pattern: 'randwrite', blockBytes: 131072, depth: 16, jobs: 1 },
];

/** A block device that takes part, and which other one it is compared with. */
interface Contender {
  readonly name: string;
  readonly path: string;
}

interface Comparison {
  readonly of: Contender;
  readonly with: Contender;
}

const SIZE_MIB = 128;

/** IOPS of our devices against the kernel's own, or against those of another build. */
export async function benchIops(options: BenchOptions): Promise<void> {
  const backends = ['null', 'ram'].filter((name) => options.backend === undefined || options.backend === name);
  for (const backend of backends) {
    const served = await serve(backend, 'this');
    const ours = await contenders(served, 'this');
    const others: Served[] = [];
    const comparisons: Comparison[] = [];
    let native: string | undefined;
    if (options.against === undefined) {
      native = backend === 'null' ? await makeNullBlk() : await makeLoop();
      const kernels: Contender = { name: backend === 'null' ? 'null_blk' : 'loop', path: native };
      for (const our of ours) comparisons.push({ of: our, with: kernels });
      const [userCopy, copy] = ours;
      if (userCopy && copy) comparisons.push({ of: userCopy, with: copy });
    } else {
      const other = await serve(backend, 'other', options.against);
      others.push(other);
      const theirs = await contenders(other, 'other');
      for (const [index, our] of ours.entries()) {
        const their = theirs[index];
        if (their) comparisons.push({ of: our, with: their });
      }
    }
    if (backend === 'ram') await fill(comparisons.flatMap((comparison) => [comparison.of, comparison.with]));
    await compare(backend, comparisons, options);
    if (native !== undefined && backend === 'ram') await shell(`losetup -d ${native}`);
    for (const one of [served, ...others]) await one.terminate();
  }
}

/** Rounds of short slices, every contender in turn and each time another first, so that what else goes on hits all. */
async function compare(backend: string, comparisons: readonly Comparison[], options: BenchOptions): Promise<void> {
  const all = [...new Map(comparisons.flatMap((one) => [one.of, one.with]).map((one) => [one.path, one])).values()];
  const rows: string[][] = [];
  for (const { name, ...access } of workloads.filter((workload) => workload.name.includes(options.workload))) {
    const ratios = comparisons.map((): number[] => []);
    const absolute = new Map<string, number[]>(all.map(({ path }) => [path, []]));
    for (let round = 0; round < options.rounds; round++) {
      const iops = new Map<string, number>();
      for (let turn = 0; turn < all.length; turn++) {
        const { path } = all[(turn + round) % all.length] ?? { path: '' };
        const result = await runFio({ ...access, path, seconds: options.seconds });
        iops.set(path, result);
        absolute.get(path)?.push(result);
      }
      for (const [index, comparison] of comparisons.entries()) {
        ratios[index]?.push((iops.get(comparison.of.path) ?? NaN) / (iops.get(comparison.with.path) ?? NaN));
      }
    }
    rows.push([name, ...ratios.map(spread)]);
    const rates = all.map((one) => `${one.name} ${(median(absolute.get(one.path) ?? []) / 1000).toFixed(2)}`);
    process.stderr.write(
      `${backend}, ${name}: ${rows.at(-1)?.slice(1).join('  ') ?? ''}  [kIOPS: ${rates.join(', ')}]\n`,
    );
  }
  const header = comparisons.map((one) => `${one.of.name} / ${one.with.name}`);
  const how = `median of ${String(options.rounds)} rounds (least-most)`;
  process.stdout.write(`IOPS of ${backend}, ${how}\n${table(['', ...header], rows)}\n`);
}

/** Two devices of that backend, one a data path. `root`: of another checkout. */
function serve(backend: string, prefix: string, root?: string): Promise<Served> {
  const devices = ['user-copy', 'copy'].map((dataPath) => ({
    name: `bench-${prefix}-${dataPath}`,
    queues: 2,
    dataPath,
    backend: { type: backend, size: `${String(SIZE_MIB)}MiB` },
  }));
  return Served.start(devices, root);
}

async function contenders(served: Served, prefix: string): Promise<Contender[]> {
  const devices = await served.devices();
  const suffix = prefix === 'this' ? '' : ` (${prefix})`;
  return devices.map(({ path, dataPath }) => ({ name: `${dataPath}${suffix}`, path: path ?? '' }));
}

/** Memory that was never written reads faster than memory with data in it. */
async function fill(all: readonly Contender[]): Promise<void> {
  for (const path of new Set(all.map((one) => one.path))) {
    await shell(`dd if=/dev/urandom of=${path} bs=1M count=${String(SIZE_MIB)} oflag=direct status=none`);
  }
}

async function makeNullBlk(): Promise<string> {
  await shell('modprobe null_blk nr_devices=1 gb=1 bs=4096 submit_queues=2 irqmode=0');
  return '/dev/nullb0';
}

/** On a file in a tmpfs, which goes with the loop device. */
function makeLoop(): Promise<string> {
  const file = '/dev/shm/ublk-bench-loop';
  return shell(`
    modprobe loop
    truncate -s ${String(SIZE_MIB)}M ${file}
    losetup --find --show --sector-size 4096 ${file}
    rm ${file}`);
}
