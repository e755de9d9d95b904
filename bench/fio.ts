import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

export interface Workload {
  readonly path: string;
  readonly pattern: 'randread' | 'randwrite' | 'read' | 'write';
  readonly blockBytes: number;
  readonly depth: number;
  readonly jobs: number;
  readonly seconds: number;
}

interface FioOutput {
  readonly jobs: readonly Readonly<Record<'read' | 'write', { readonly iops: number }>>[];
}

/** I/Os per second. */
export async function runFio({ path, pattern, blockBytes, depth, jobs, seconds }: Workload): Promise<number> {
  const { stdout } = await run('fio', [
    '--output-format=json',
    '--name=bench',
    `--filename=${path}`,
    `--rw=${pattern}`,
    `--bs=${blockBytes}`,
    `--iodepth=${depth}`,
    `--numjobs=${jobs}`,
    `--runtime=${Math.round(seconds * 1000)}ms`,
    '--time_based',
    '--direct=1',
    '--ioengine=io_uring',
    '--thread',
    '--group_reporting',
    '--norandommap',
    '--gtod_reduce=1',
  ]);
  // fio prints notes before the document.
  const { jobs: groups } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as FioOutput;
  return groups.reduce((sum, group) => sum + group[pattern.endsWith('read') ? 'read' : 'write'].iops, 0);
}
