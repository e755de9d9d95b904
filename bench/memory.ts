import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runFio } from './fio.js';
import { RunningSupervisor } from './running-supervisor.js';
import { table } from './statistics.js';

/** Small: pages of a disk that only one process has mapped would count as its own. */
const SIZE = 4 * 2 ** 20;
const FILE = '/dev/shm/ublk-bench-memory';
const JAVASCRIPT = fileURLToPath(new URL('../../examples/ram-backend.js', import.meta.url));
const backends = [
  ['null', ['user-copy', 'copy']],
  ['ram', ['user-copy', 'copy']],
  ['file', ['zero-copy', 'copy']],
  [JAVASCRIPT, ['copy']],
] as const;

interface Memory {
  readonly privateKiB: number;
  readonly residentKiB: number;
}

export function memoryOf(pid: number): Memory {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  const field = (name: string): number => Number(new RegExp(`^${name}: +([0-9]+) kB`, 'm').exec(text)?.[1] ?? NaN);
  return { privateKiB: field('Private_Dirty') + field('Private_Clean'), residentKiB: field('Rss') };
}

/** What a queue process and its zygote have in memory for themselves, against a Node that booted and does nothing. */
export async function benchMemory(): Promise<void> {
  const node = spawn(process.execPath, ['-e', 'console.log(1); setInterval(() => 0, 1e6)'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(node.stdout, 'data');
  const booted = memoryOf(node.pid ?? 0);
  const rows = [row('a booted node', booted, booted)];
  for (const [type, dataPaths] of backends) {
    for (const dataPath of dataPaths) {
      const backend = { type, ...(type === 'file' ? { path: FILE } : {}), size: SIZE };
      const served = await RunningSupervisor.start([{ name: 'memory', depth: 128, dataPath, backend }]);
      const { path, queues } = await served.device('memory');
      const queue = queues[0]?.pid ?? 0;
      // A process that served for a while; of a disk that was never written to, so that no data counts.
      await runFio({ path: path ?? '', pattern: 'randread', blockBytes: 4096, depth: 64, jobs: 1, seconds: 1 });
      if (rows.length === 1) rows.push(row('zygote', memoryOf(parentOf(queue)), booted));
      rows.push(row(`queue process, ${basename(type)}, ${dataPath}`, memoryOf(queue), booted));
      await served.terminate();
    }
  }
  rmSync(FILE);
  node.kill();
  process.stdout.write(
    `memory of one process, depth 128\n${table(['', 'PRIVATE KiB', 'RSS KiB', 'PRIVATE / NODE'], rows)}\n`,
  );
}

/** Queue processes are children of their device's zygote. */
export function parentOf(pid: number): number {
  return Number(/^PPid:\t([0-9]+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}

function row(name: string, memory: Memory, booted: Memory): string[] {
  const ratio = memory.privateKiB / booted.privateKiB;
  return [name, String(memory.privateKiB), String(memory.residentKiB), ratio.toFixed(3)];
}
