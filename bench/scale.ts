import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { zipArchive } from '../test/unit/backends/zip/zip-archive.js';
import type { BenchOptions } from './options.js';
import { memoryOf, parentOf } from './memory.js';
import { runFio } from './fio.js';
import { RunningSupervisor } from './running-supervisor.js';
import { median, table } from './statistics.js';

const run = promisify(execFile);

const QUEUES = 2;
const DEPTH = 16;
const SIZE = '4MiB';
/** Of each hundred devices; the rest are null, ram and file, in turns. */
const JAVASCRIPT_IN_100 = 1;
const ZIP_IN_100 = 2;
const JAVASCRIPT = fileURLToPath(new URL('../../examples/ram-backend.js', import.meta.url));
const LOOP_DELAY = fileURLToPath(new URL('../../bench/loop-delay.js', import.meta.url));

/** Enough to know what one costs; a thousand would take longer than everything else. */
const NODES = 40;
const IDLE_SECONDS = 20;
const LOADED_DEVICES = 16;
const LOAD_SECONDS = 8;
const TIMES = 5;

/** Many devices of one supervisor, fewer and fewer, so that one sees how each cost grows with their number. */
export async function benchScale({ devices: counts }: BenchOptions): Promise<void> {
  const directory = await mkdtemp('/dev/shm/ublk-bench-scale-');
  try {
    const node = await nodeSeconds();
    const columns: Map<string, string>[] = [];
    for (const count of counts) {
      const column = await measure(count, node, directory);
      columns.push(column);
      // The next one takes long, and may be one too many for this machine.
      process.stderr.write(`${count} devices: ${[...column].map((row) => row.join(' ')).join(' | ')}\n`);
    }
    const [first = new Map<string, string>()] = columns;
    const rows = [...first.keys()].map((name) => [name, ...columns.map((column) => column.get(name) ?? '')]);
    const header = ['', ...counts.map((count) => `${count} devices`)];
    process.stdout.write(
      `devices with ${QUEUES} queues of depth ${DEPTH}; node is \`node -e 0\`, ` +
        `${(node * 1000).toFixed(0)} ms each, two at a time\n${table(header, rows)}\n`,
    );
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** How long one `node -e 0` takes where two are run at a time, in seconds of wall clock each. */
async function nodeSeconds(): Promise<number> {
  const begun = performance.now();
  const one = async (): Promise<void> => {
    for (let i = 0; i < NODES / 2; i++) await run(process.execPath, ['-e', '0']);
  };
  await Promise.all([one(), one()]);
  return (performance.now() - begun) / 1000 / NODES;
}

async function devicesFor(count: number, directory: string): Promise<object[]> {
  const zip = join(directory, 'disk.zip');
  await writeFile(zip, zipArchive([{ name: 'disk.img', data: Buffer.alloc(4 * 2 ** 20) }]));
  return Array.from({ length: count }, (_, index) => {
    const name = `d${index}`;
    const place = index % 100;
    const native = [
      { type: 'null', size: SIZE },
      { type: 'ram', size: SIZE },
      { type: 'file', size: SIZE, path: join(directory, `${name}.img`) },
    ][index % 3];
    const backend =
      place < JAVASCRIPT_IN_100
        ? { type: JAVASCRIPT, size: 4 * 2 ** 20 }
        : place < JAVASCRIPT_IN_100 + ZIP_IN_100
          ? { type: 'zip', path: zip }
          : native;
    return { name, queues: QUEUES, depth: DEPTH, recovery: { maxRestarts: 1000 }, backend };
  });
}

async function measure(count: number, node: number, directory: string): Promise<Map<string, string>> {
  const rows = new Map<string, string>();
  const configured = await devicesFor(count, directory);
  let begun = performance.now();
  const since = (): number => (performance.now() - begun) / 1000;
  const served = await RunningSupervisor.start(configured, undefined, LOOP_DELAY);
  const started = since();
  rows.set('start, s', started.toFixed(1));
  rows.set('start / as many node as queues', (started / (count * QUEUES * node)).toFixed(3));

  const devices = await served.devices();
  const live = devices.filter(({ state }) => state === 'live');
  if (live.length !== count) throw new Error(`${live.length} of ${count} devices are live`);
  const native = devices.filter(({ backend }) => ['null', 'ram', 'file'].includes(backend));
  const queuePids = native.flatMap(({ queues }) => queues.map(({ pid }) => pid ?? 0));
  const privateKiB = (pids: readonly number[]): string =>
    median(pids.slice(0, 50).map((pid) => memoryOf(pid).privateKiB)).toFixed(0);
  rows.set('private KiB: native queue process', privateKiB(queuePids));
  rows.set('private KiB: zygote', privateKiB(native.map(({ queues }) => parentOf(queues[0]?.pid ?? 0))));
  rows.set('private KiB: supervisor', privateKiB([served.pid]));
  rows.set('descriptors of the supervisor', String(readdirSync(`/proc/${served.pid}/fd`).length));

  const before = cpuSeconds(served.pid);
  await setTimeout(IDLE_SECONDS * 1000);
  rows.set('CPU of the idle supervisor, %', (((cpuSeconds(served.pid) - before) / IDLE_SECONDS) * 100).toFixed(2));
  process.kill(served.pid, 'SIGPWR');
  await setTimeout(IDLE_SECONDS * 500);
  rows.set('longest event loop delay, idle, ms', await loopDelay(served.pid));

  process.kill(served.pid, 'SIGPWR');
  rows.set('status, ms', await timed(() => served.devices()));
  rows.set('status of one device, ms', await timed(() => served.device('d1')));
  rows.set('longest event loop delay, asked, ms', await loopDelay(served.pid));
  rows.set('list / node', (Math.min(...(await seconds(() => served.command('list')))) / node).toFixed(1));

  const victim = devices.find(({ backend, name }) => backend === 'ram' && name !== 'd1') ?? devices[1];
  const others = native.filter(({ name }) => name !== victim?.name).slice(0, LOADED_DEVICES);
  const load = runFio({
    path: others.map(({ path }) => path ?? '').join(':'),
    pattern: 'randread',
    blockBytes: 4096,
    depth: 16,
    jobs: 1,
    seconds: LOAD_SECONDS,
  });
  await setTimeout(1000);
  process.kill(victim?.queues[0]?.pid ?? 0, 'SIGKILL');
  const recovered = await served.untilGeneration(victim?.name ?? '', 2);
  rows.set('pause of one that recovers under load, ms', (recovered.lastPauseMs ?? NaN).toFixed(0));
  await load;

  begun = performance.now();
  await served.replace();
  rows.set('supervisor killed, all adopted, s', since().toFixed(1));
  begun = performance.now();
  await served.terminate();
  rows.set('stop, s', since().toFixed(1));
  return rows;
}

/** Each of several times. */
async function seconds(act: () => Promise<unknown>): Promise<number[]> {
  const all: number[] = [];
  for (let i = 0; i < TIMES; i++) {
    const begun = performance.now();
    await act();
    all.push((performance.now() - begun) / 1000);
  }
  return all;
}

async function timed(act: () => Promise<unknown>): Promise<string> {
  return (median(await seconds(act)) * 1000).toFixed(1);
}

/** User and system time, from /proc/PID/stat in ticks of 10 ms. */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /s, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Since it was asked for, from what bench/loop-delay.js writes in the supervisor. */
async function loopDelay(pid: number): Promise<string> {
  const file = `/run/loop-delay.${pid}`;
  rmSync(file, { force: true });
  process.kill(pid, 'SIGPWR');
  while (!existsSync(file)) await setTimeout(50);
  return Number(await readFile(file, 'utf8')).toFixed(0);
}
