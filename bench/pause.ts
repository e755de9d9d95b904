import { execFile } from 'node:child_process';
import { open } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Served } from './served.js';
import type { BenchOptions } from './main.js';
import { quantile, table } from './statistics.js';

const run = promisify(execFile);

/** A generation that lived shorter makes the supervisor wait before the next one. */
const LIFE_MS = 1050;
/** Sparse, and larger than reads ever get. */
const SIZE_MIB = 16384;

/** One kill, in milliseconds. */
interface Sample {
  /** From the kill to the answer of a read that was sent right after it. */
  readonly pause: number;
  /** From the kill to the supervisor knowing of it. */
  readonly detect: number;
  /** From then to the device being live again: ending the others, waiting for the release, spawning, recovering. */
  readonly recover: number;
  /** What is left: the kernel handing the read out again, and its way back. */
  readonly resume: number;
  readonly node: number;
}

/** How long a client waits when a queue process is killed, against how long a plain Node takes to start and end. */
export async function benchPause({ kills }: BenchOptions): Promise<void> {
  const rows: string[][] = [];
  // The kernel grants a queue per CPU.
  for (const queues of availableParallelism() > 1 ? [1, 2] : [1]) {
    for (const dataPath of ['user-copy', 'copy'] as const) {
      const samples = await killRepeatedly(kills, queues, dataPath);
      const of = (key: keyof Sample, share: number): number =>
        quantile(
          samples.map((sample) => sample[key]),
          share,
        );
      rows.push([
        `ram, ${dataPath}, ${String(queues)} queue${queues > 1 ? 's' : ''}`,
        ...[of('pause', 0.5), of('pause', 0.99), of('pause', 1)].map((ms) => ms.toFixed(0)),
        ...[of('detect', 0.5), of('recover', 0.5), of('resume', 0.5)].map((ms) => ms.toFixed(0)),
        of('node', 0.5).toFixed(0),
        (of('pause', 0.5) / of('node', 0.5)).toFixed(2),
      ]);
    }
  }
  const header = ['', 'P50 ms', 'P99', 'MAX', 'DETECT', 'RECOVER', 'RESUME', 'NODE', 'P50 / NODE'];
  process.stdout.write(`pause after SIGKILL of a queue process, ${String(kills)} kills\n${table(header, rows)}\n`);
}

async function killRepeatedly(kills: number, queues: number, dataPath: 'copy' | 'user-copy'): Promise<Sample[]> {
  const served = await Served.start([
    {
      name: 'pause',
      queues,
      dataPath,
      backend: { type: 'ram', size: `${String(SIZE_MIB)}MiB` },
      recovery: { maxRestarts: 10_000 },
    },
  ]);
  const { path } = await served.device('pause');
  const client = await open(path ?? '', 'r');
  const buffer = Buffer.alloc(4096);
  const samples: Sample[] = [];
  for (let kill = 0; kill < kills; kill++) {
    const started = performance.now();
    await run(process.execPath, ['-e', '0']);
    const node = performance.now() - started;
    await setTimeout(Math.max(0, LIFE_MS - node));
    const before = await served.untilRecovered('pause', kill);
    const pid = before.queues[kill % before.queues.length]?.pid;
    // 0 would be our own process group.
    if (!pid) throw new Error('the device is live without a queue process');
    const killedAt = performance.timeOrigin + performance.now();
    process.kill(pid, 'SIGKILL');
    // Nobody read there before, so no cache answers.
    const { bytesRead } = await client.read(buffer, 0, 4096, ((kill + 1) % SIZE_MIB) * 2 ** 20);
    const pause = performance.timeOrigin + performance.now() - killedAt;
    if (bytesRead !== 4096) throw new Error('a read failed');
    const after = await served.untilRecovered('pause', kill + 1);
    const detect = Math.max(0, Date.parse(after.lastExit?.at ?? '') - killedAt);
    const recover = after.lastPauseMs ?? NaN;
    samples.push({ pause, detect, recover, resume: Math.max(0, pause - detect - recover), node });
  }
  await client.close();
  await served.terminate();
  return samples;
}
