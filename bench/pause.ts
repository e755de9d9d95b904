import { execFile } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import type { DeviceStatus } from '../src/api/status.js';
import type { BenchOptions } from './options.js';
import { Reading } from './reading.js';
import { RunningSupervisor } from './running-supervisor.js';
import { quantile, table } from './statistics.js';

const run = promisify(execFile);

/** A generation that lived shorter makes the supervisor wait before the next one. */
const LIFE_MS = 1050;
const REQUEST_TIMEOUT_MS = 1000;

/** What replaces the queue processes of a device; its clients wait meanwhile. */
interface Fault {
  readonly name: string;
  /** Of the wait, what the configuration asks for. */
  readonly configuredMs: number;
  readonly strike: (served: RunningSupervisor, device: DeviceStatus, round: number) => unknown;
}

const signalOne =
  (signal: NodeJS.Signals): Fault['strike'] =>
  (_served, { queues }, round) => {
    const pid = queues[round % queues.length]?.pid;
    // 0 would be our own process group.
    if (!pid) throw new Error('the device is live without a queue process');
    process.kill(pid, signal);
  };

const faults: readonly Fault[] = [
  { name: 'kill -9', configuredMs: 0, strike: signalOne('SIGKILL') },
  { name: 'hang, beyond requestTimeout', configuredMs: REQUEST_TIMEOUT_MS, strike: signalOne('SIGSTOP') },
  { name: 'restart', configuredMs: 0, strike: (served, { name }) => served.restart(name) },
];

/** One fault, in milliseconds. */
interface Sample {
  /** The longest that a client waited for an answer, without what was configured. */
  readonly pause: number;
  /** From the fault to the supervisor knowing of it; NaN: it is its own doing. */
  readonly detect: number;
  /** From then to the device being live again: ending the others, waiting for the release, spawning, recovering. */
  readonly recover: number;
  readonly node: number;
}

/** How long clients wait when somebody dies or is replaced, against how long a plain Node takes to start and end. */
export async function benchPause({ times }: BenchOptions): Promise<void> {
  const rows: string[][] = [];
  // The kernel grants a queue per CPU.
  for (const queues of availableParallelism() > 1 ? [1, 2] : [1]) {
    for (const dataPath of ['user-copy', 'copy'] as const) {
      const served = await serve(queues, dataPath);
      for (const fault of faults) {
        const samples = await strikeRepeatedly(served, fault, times);
        rows.push([`${fault.name}, ${dataPath}, ${queues} queue${queues > 1 ? 's' : ''}`, ...cells(samples)]);
      }
      await served.terminate();
    }
  }
  const header = ['', 'P50 ms', 'P99', 'MAX', 'DETECT', 'RECOVER', 'NODE', 'P50 / NODE'];
  process.stdout.write(`pause of a client, ${times} times each\n${table(header, rows)}\n`);
  await benchSupervisorDeath(times);
}

function serve(queues: number, dataPath: 'copy' | 'user-copy'): Promise<RunningSupervisor> {
  const requestTimeout = `${REQUEST_TIMEOUT_MS}ms`;
  const backend = { type: 'ram', size: '64MiB' };
  const recovery = { maxRestarts: 10_000 };
  return RunningSupervisor.start([{ name: 'pause', queues, dataPath, requestTimeout, backend, recovery }]);
}

function cells(samples: readonly Sample[]): string[] {
  const of = (key: keyof Sample, share: number): number =>
    quantile(
      samples.map((sample) => sample[key]),
      share,
    );
  const figures = [of('pause', 0.5), of('pause', 0.99), of('pause', 1), of('detect', 0.5), of('recover', 0.5)];
  const milliseconds = [...figures, of('node', 0.5)].map((ms) => (Number.isNaN(ms) ? '-' : ms.toFixed(0)));
  return [...milliseconds, (of('pause', 0.5) / of('node', 0.5)).toFixed(2)];
}

async function strikeRepeatedly(served: RunningSupervisor, fault: Fault, times: number): Promise<Sample[]> {
  const samples: Sample[] = [];
  for (let round = 0; round < times; round++) {
    const node = await timed(startNode);
    await setTimeout(Math.max(0, LIFE_MS - node));
    const before = await served.device('pause');
    const reading = await Reading.begin(before.path ?? '');
    const struckAt = Date.now();
    await fault.strike(served, before, round);
    const { lastExit, lastPauseMs, recoveries } = await served.untilGeneration('pause', before.generation + 1);
    const longest = await reading.end();
    samples.push({
      pause: longest - fault.configuredMs,
      detect:
        recoveries === before.recoveries
          ? NaN
          : Math.max(0, Date.parse(lastExit?.at ?? '') - struckAt - fault.configuredMs),
      recover: lastPauseMs ?? NaN,
      node,
    });
  }
  return samples;
}

/** The death of a supervisor is to be no pause at all: whoever reads meanwhile only shares the CPUs with a Node that starts. */
async function benchSupervisorDeath(times: number): Promise<void> {
  const served = await serve(1, 'user-copy');
  const { path } = await served.device('pause');
  const longestDuring = async (act: () => Promise<unknown>): Promise<number> => {
    const reading = await Reading.begin(path ?? '');
    await act();
    return reading.end();
  };
  const replaced: number[] = [];
  const undisturbed: number[] = [];
  const beside: number[] = [];
  for (let round = 0; round < times; round++) {
    let windowMs = 0;
    replaced.push(await longestDuring(async () => (windowMs = await timed(() => served.replace()))));
    undisturbed.push(await longestDuring(() => setTimeout(windowMs)));
    beside.push(await longestDuring(startNode));
  }
  await served.terminate();
  const row = (name: string, gaps: readonly number[]): string[] => [
    name,
    ...[0.5, 0.99, 1].map((share) => quantile(gaps, share).toFixed(1)),
    (quantile(gaps, 0.5) / quantile(undisturbed, 0.5)).toFixed(2),
  ];
  const rows = [
    row('undisturbed', undisturbed),
    row('a plain node starts', beside),
    row('supervisor killed, another one started', replaced),
  ];
  const header = ['', 'P50 ms', 'P99', 'MAX', 'P50 / UNDISTURBED'];
  process.stdout.write(`longest wait for an answer, ${times} times each\n${table(header, rows)}\n`);
}

const startNode = (): Promise<unknown> => run(process.execPath, ['-e', '0']);

async function timed(act: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await act();
  return performance.now() - started;
}
