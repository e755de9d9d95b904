import { copyFile, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { root, waitFor } from './harness.js';

/** Moments of a queue process' start that can be made fatal or endless; see src/native/common/fault_point.cpp. */
export type FaultPoint = 'preparing' | 'fetching' | 'fetched' | 'announced' | 'permitted' | 'complete';

const FAULTS = '/run/ublk-faults';
const SIGNALS = { none: 0, SIGKILL: 9, SIGSTOP: 19 } as const;

/** Puts the library with fault points in the place of the real one; in the guest only, whose root is an overlay. */
export async function installFaultPoints(): Promise<void> {
  const release = join(root, 'build/Release');
  const inPlace = join(release, 'zygote.so');
  await copyFile(join(release, 'zygote_faults.so'), `${inPlace}.new`);
  // A zygote that runs has the old one mapped.
  await rename(`${inPlace}.new`, inPlace);
  await disarm();
}

/**
 * The next `count` processes of `queue`, of whatever device, that get to `point` send themselves `signal`. None: it strikes
 * when the process can neither open a file nor signal its zygote.
 */
export async function arm(point: FaultPoint, queue: number, signal: keyof typeof SIGNALS, count = 1): Promise<void> {
  await writeFile(FAULTS, `${point} ${queue} ${SIGNALS[signal]} ${count}\n`);
}

export async function disarm(): Promise<void> {
  await writeFile(FAULTS, '');
}

/** Resolves when what was armed happened as often as it was to. */
export const untilStruck = (): Promise<true> =>
  waitFor('the fault', async () => (await readFile(FAULTS, 'utf8')).endsWith(' 0\n'));

/** Resolves when the process waits in the kernel for requests, so that all of its FETCHes are there. */
export const untilFetched = (pid: number): Promise<true> => waitFor('the fetches', () => isWaiting(pid));

/** Whether the process waits for requests. */
export async function isWaiting(pid: number): Promise<boolean> {
  const where = await readFile(`/proc/${pid}/wchan`, 'utf8').catch(() => 'it is gone');
  return where.includes('io_cqring');
}
