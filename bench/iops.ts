import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { runFio, type Workload } from './fio.js';
import type { BenchOptions } from './options.js';
import { RunningSupervisor } from './running-supervisor.js';
import { median, spread, table } from './statistics.js';

const run = promisify(execFile);

async function shell(script: string): Promise<string> {
  return (await run('sh', ['-ec', script])).stdout.trim();
}

type Access = Omit<Workload, 'path' | 'seconds'> & { readonly name: string };

const random: readonly Access[] = [
  { name: '4k read, depth 1', pattern: 'randread', blockBytes: 4096, depth: 1, jobs: 1 },
  { name: '4k read, depth 1, 2 jobs', pattern: 'randread', blockBytes: 4096, depth: 1, jobs: 2 },
  { name: '4k read, depth 64', pattern: 'randread', blockBytes: 4096, depth: 64, jobs: 1 },
  { name: '4k read, depth 64, 2 jobs', pattern: 'randread', blockBytes: 4096, depth: 64, jobs: 2 },
  { name: '4k write, depth 64', pattern: 'randwrite', blockBytes: 4096, depth: 64, jobs: 1 },
  { name: '128k read, depth 16', pattern: 'randread', blockBytes: 131072, depth: 16, jobs: 1 },
  { name: '128k write, depth 16', pattern: 'randwrite', blockBytes: 131072, depth: 16, jobs: 1 },
];

const ofFiles: readonly Access[] = [
  { name: '4k random read, depth 1', pattern: 'randread', blockBytes: 4096, depth: 1, jobs: 1 },
  { name: '4k random write, depth 1', pattern: 'randwrite', blockBytes: 4096, depth: 1, jobs: 1 },
  { name: '4k random read, depth 64', pattern: 'randread', blockBytes: 4096, depth: 64, jobs: 1 },
  { name: '4k random write, depth 64', pattern: 'randwrite', blockBytes: 4096, depth: 64, jobs: 1 },
  { name: '128k sequential read, depth 16', pattern: 'read', blockBytes: 131072, depth: 16, jobs: 1 },
  { name: '128k sequential write, depth 16', pattern: 'write', blockBytes: 131072, depth: 16, jobs: 1 },
];

const SIZE_MIB = 128;
const SIZE = SIZE_MIB * 2 ** 20;
const IMAGE = '/dev/shm/ublk-bench-image';
const MOUNT = '/run/ublk-bench-ext4';

/** A block device that takes part. */
interface Contender {
  readonly name: string;
  readonly path: string;
}

type Build = 'this' | 'other';

/** Devices of ours by name, to be compared with `reference`: one of them, or a block device that is made for it. */
interface Match {
  readonly workloads: readonly Access[];
  /** `build`: for what two builds cannot have both, such as a file. */
  readonly devices: (build: Build) => Readonly<Record<string, object>>;
  readonly reference: string | { readonly name: string; readonly make: string; readonly remove: string };
  /** Shell commands before and after everything. */
  readonly setUp?: string;
  readonly tearDown?: string;
  /** Memory that was never written reads faster than memory with data in it. */
  readonly fill: boolean;
}

const module = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));

const loop = (file: string, flags = ''): Exclude<Match['reference'], string> => ({
  name: 'loop',
  make: `modprobe loop; truncate -s ${SIZE} ${file}; losetup --find --show --sector-size 4096 ${flags} ${file}`,
  remove: `losetup -d $0; rm ${file}`,
});

const file = (path: string): object => ({ type: 'file', path, size: SIZE });

const matches: Readonly<Record<string, Match>> = {
  null: {
    workloads: random,
    devices: () => ({
      'user-copy': { dataPath: 'user-copy', backend: { type: 'null', size: SIZE } },
      copy: { dataPath: 'copy', backend: { type: 'null', size: SIZE } },
    }),
    reference: {
      name: 'null_blk',
      make: 'modprobe null_blk nr_devices=1 gb=1 bs=4096 submit_queues=2 irqmode=0; echo /dev/nullb0',
      remove: 'modprobe -r null_blk',
    },
    fill: false,
  },
  ram: {
    workloads: random,
    devices: () => ({
      'user-copy': { dataPath: 'user-copy', backend: { type: 'ram', size: SIZE } },
      copy: { dataPath: 'copy', backend: { type: 'ram', size: SIZE } },
    }),
    reference: loop('/dev/shm/ublk-bench-loop'),
    fill: true,
  },
  javascript: {
    workloads: random,
    devices: () => ({
      sync: { backend: { type: module('examples/ram-backend.js'), size: SIZE } },
      async: { backend: { type: module('bench/async-ram-backend.js'), size: SIZE } },
      native: { dataPath: 'copy', backend: { type: 'ram', size: SIZE } },
    }),
    reference: 'native',
    fill: true,
  },
  'file-tmpfs': {
    workloads: ofFiles,
    devices: (build) => ({
      'zero-copy': { dataPath: 'zero-copy', backend: file(`/dev/shm/ublk-bench-zero-copy-${build}`) },
      copy: { dataPath: 'copy', backend: file(`/dev/shm/ublk-bench-copy-${build}`) },
    }),
    reference: loop('/dev/shm/ublk-bench-loop'),
    tearDown: 'rm /dev/shm/ublk-bench-*',
    fill: true,
  },
  'file-ext4': {
    workloads: ofFiles,
    devices: (build) => ({
      'zero-copy': { dataPath: 'zero-copy', backend: file(`${MOUNT}/zero-copy-${build}`) },
      copy: { dataPath: 'copy', backend: file(`${MOUNT}/copy-${build}`) },
    }),
    reference: loop(`${MOUNT}/loop`, '--direct-io=on'),
    setUp: `modprobe loop; truncate -s ${5 * SIZE} ${IMAGE}; mkfs.ext4 -q ${IMAGE}; mkdir -p ${MOUNT}; mount -o loop ${IMAGE} ${MOUNT}`,
    tearDown: `umount ${MOUNT}; rm ${IMAGE}`,
    fill: true,
  },
};

export const matchNames = Object.keys(matches);

/** IOPS of our devices against the kernel's own or against one of them; `against`: against those of another build. */
export async function benchIops(options: BenchOptions): Promise<void> {
  for (const [name, match] of Object.entries(matches)) {
    if (options.backend !== undefined && options.backend !== name) continue;
    if (match.setUp !== undefined) await shell(match.setUp);
    const served = await serve(match, 'this');
    const ours = await contenders(served, match, 'this');
    if (options.against === undefined) await againstReference(name, match, ours, options);
    else {
      const other = await serve(match, 'other', options.against);
      const theirs = (await contenders(other, match, 'other')).map((one) => ({ ...one, name: `${one.name} (other)` }));
      const pairs = ours.flatMap((our, index) => (theirs[index] ? [{ of: our, with: theirs[index] }] : []));
      await compare(name, match, pairs, options);
      await other.terminate();
    }
    await served.terminate();
    if (match.tearDown !== undefined) await shell(match.tearDown);
  }
}

async function againstReference(
  name: string,
  match: Match,
  ours: readonly Contender[],
  options: BenchOptions,
): Promise<void> {
  const { reference } = match;
  if (typeof reference === 'string') {
    const one = ours.find((our) => our.name === reference);
    if (!one) throw new TypeError(`${name} has no device ${reference}`);
    const pairs = ours.filter((our) => our !== one).map((our) => ({ of: our, with: one }));
    return compare(name, match, pairs, options);
  }
  const path = await shell(reference.make);
  const kernels = { name: reference.name, path };
  const [first, second] = ours;
  const between = first && second ? [{ of: first, with: second }] : [];
  await compare(name, match, [...ours.map((our) => ({ of: our, with: kernels })), ...between], options);
  await run('sh', ['-ec', reference.remove, path]);
}

interface Comparison {
  readonly of: Contender;
  readonly with: Contender;
}

/** Rounds of short slices, every contender in turn and each time another first, so that what else goes on hits all. */
async function compare(
  name: string,
  { workloads, fill }: Match,
  comparisons: readonly Comparison[],
  options: BenchOptions,
): Promise<void> {
  const all = [...new Map(comparisons.flatMap((one) => [one.of, one.with]).map((one) => [one.path, one])).values()];
  if (fill) {
    for (const { path } of all) {
      await shell(`dd if=/dev/urandom of=${path} bs=1M count=${SIZE_MIB} oflag=direct status=none`);
    }
  }
  const rows: string[][] = [];
  for (const { name: workload, ...access } of workloads.filter((one) => one.name.includes(options.workload))) {
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
    rows.push([workload, ...ratios.map(spread)]);
    const rates = all.map((one) => `${one.name} ${(median(absolute.get(one.path) ?? []) / 1000).toFixed(2)}`);
    process.stderr.write(
      `${name}, ${workload}: ${rows.at(-1)?.slice(1).join('  ') ?? ''}  [kIOPS: ${rates.join(', ')}]\n`,
    );
  }
  const header = comparisons.map((one) => `${one.of.name} / ${one.with.name}`);
  const how = `median of ${options.rounds} rounds (least-most)`;
  process.stdout.write(`IOPS of ${name}, ${how}\n${table(['', ...header], rows)}\n`);
}

/** `root`: of another checkout. */
function serve({ devices }: Match, build: Build, root?: string): Promise<RunningSupervisor> {
  const configs = Object.entries(devices(build)).map(([name, device]) => ({
    name: `bench-${build}-${name}`,
    queues: 2,
    ...device,
  }));
  return RunningSupervisor.start(configs, root);
}

async function contenders(served: RunningSupervisor, { devices }: Match, build: Build): Promise<Contender[]> {
  const all = Object.keys(devices(build)).map(async (name) => {
    const { path, state, reason } = await served.device(`bench-${build}-${name}`);
    if (state !== 'live' || path === null) throw new Error(`${name} of ${build} build is ${state}: ${reason ?? ''}`);
    return { name, path };
  });
  return Promise.all(all);
}
