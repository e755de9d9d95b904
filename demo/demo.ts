import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { messageOf } from '../src/errors.js';
import { DemoError, command } from './command.js';
import { Reader } from './reader.js';
import { PATIENCE_MS, RunningSupervisor } from './running-supervisor.js';
import { checksums, copySources } from './tree.js';
import { Verifier } from './verifier.js';

/**
 * What `npm start` shows: a file system on a block device that Node.js processes serve goes on working while these
 * processes are killed.
 */

const PROJECT = fileURLToPath(new URL('../../', import.meta.url));
const DEVICE = 'scratch';
/** As many restarts as examples/config.json allows a minute; after one more the device would wait for an operator. */
const KILLS = 10;
const BETWEEN_KILLS_MS = 1500;
/** A busy machine may need most of it in an emulated guest. */
const UNDO_MS = 60_000;

/** What has to be undone, the last thing first. */
const undo: (() => Promise<void>)[] = [];

async function demonstrate(stopped: AbortSignal): Promise<void> {
  const ramFile = `/dev/shm/ublk-supervisor/${DEVICE}.ram`;
  if (existsSync(ramFile)) throw new DemoError(`${ramFile} exists, the data of a RAM disk that this would overwrite`);
  const directory = await mkdtemp('/run/ublk-supervisor-demo-');
  undo.push(() => rm(directory, { recursive: true }));
  const mountPoint = join(directory, 'mnt');
  await mkdir(mountPoint);

  say(`Linux ${release()}: ublk-supervisor start examples/config.json`);
  const began = performance.now();
  const served = new RunningSupervisor(join(PROJECT, 'examples/config.json'), directory);
  undo.push(() => end(served, mountPoint));
  await served.ready();
  const { path, state, reason, queues } = await served.device(DEVICE);
  if (path === null || state !== 'live') throw new DemoError(`device ${DEVICE} is ${state}: ${reason ?? 'no reason'}`);
  stopped.throwIfAborted();
  say(`  ${path} is a RAM disk with ${queues.length} hardware queues, each served by a process of its own:`);
  say(`  pids ${queues.map(({ pid }) => String(pid)).join(' and ')}, live after ${seconds(performance.now() - began)}`);

  await command('mkfs.ext4', ['-q', path]);
  await command('mount', [path, mountPoint]);
  let mounted = true;
  const unmount = async (): Promise<void> => {
    if (mounted) await command('umount', [mountPoint]);
    mounted = false;
  };
  undo.push(unmount);
  const tree = join(mountPoint, 'sources');
  await copySources(PROJECT, tree);
  const sums = await checksums(tree);
  stopped.throwIfAborted();
  say(`  ext4 on it holds ${sums.size} files; fio writes and verifies (crc32c); a reader times its reads`);

  const reader = new Reader(join(mountPoint, 'read'));
  undo.push(() => reader.stop());
  const verifier = new Verifier(join(mountPoint, 'verified'));
  undo.push(() => verifier.kill());

  say('\n   KILL  SIGKILL TO            READER WAITED  READ ERRORS');
  const pauses: number[] = [];
  for (let kill = 1; kill <= KILLS; kill += 1) {
    await sleep(BETWEEN_KILLS_MS, undefined, { signal: stopped });
    pauses.push(await killQueue(kill, served, reader, verifier));
    stopped.throwIfAborted();
  }
  await verifier.finish();
  verifier.check();
  await reader.stop();

  // Mounted again, so that what is compared comes from the device and not from memory.
  await unmount();
  await command('e2fsck', ['-fn', path]);
  await command('mount', ['-o', 'ro', path, mountPoint]);
  mounted = true;
  const changed = differences(sums, await checksums(tree));
  await unmount();
  stopped.throwIfAborted();
  if (changed.length > 0) throw new DemoError(`${changed.length} copied files changed: ${changed.join(' ')}`);

  pauses.sort((a, b) => a - b);
  say(`\n  queue processes killed  ${KILLS}`);
  say(`  pause p50 / max         ${milliseconds(pauses[(KILLS >> 1) - 1])} / ${milliseconds(pauses.at(-1))}`);
  say(`  reads                   ${reader.reads}`);
  say(`  verified by fio         ${verifier.verifiedBytes >> 20} MiB in ${verifier.rounds} rounds`);
  say(`  files compared          ${sums.size}, unchanged; e2fsck finds nothing`);
  say(`  I/O errors              ${reader.errors}`);
  say(`  verify errors           ${reader.wrong}`);
}

/** Kills the process of one queue; resolves with how long the reader waited, when the device is live again. */
async function killQueue(kill: number, served: RunningSupervisor, reader: Reader, verifier: Verifier): Promise<number> {
  const { queues, recoveries } = await served.device(DEVICE);
  const queue = queues[kill % queues.length];
  if (queue === undefined || queue.pid === null) throw new DemoError('a queue has no process');
  reader.takeLongestMs();
  try {
    process.kill(queue.pid, 'SIGKILL');
  } catch {
    throw new DemoError(`the process of queue ${queue.index} is gone, and not by our doing`);
  }
  await served.live(DEVICE, recoveries + 1);
  // The read that was outstanding has ended when another one has begun and ended, too.
  const reads = reader.reads;
  const deadline = performance.now() + PATIENCE_MS;
  while (reader.reads < reads + 2) {
    if (performance.now() > deadline) throw new DemoError('the device is live, but a read of it does not end');
    await sleep(5);
  }
  const pause = reader.takeLongestMs();
  const target = `queue ${queue.index}, pid ${queue.pid}`;
  const count = `${kill}/${KILLS}`.padStart(7);
  say(`${count}  ${target.padEnd(20)}  ${milliseconds(pause).padStart(13)}  ${String(reader.errors).padStart(11)}`);
  if (reader.errors > 0) throw new DemoError('a read failed');
  if (reader.wrong > 0) throw new DemoError('a read returned something else than what had been written');
  verifier.check();
  return pause;
}

/** The device's data goes, too: it was made for this. By force only if the gentle way does not work. */
async function end(served: RunningSupervisor, mountPoint: string): Promise<void> {
  if (!served.running) return;
  try {
    await served.command('del', DEVICE);
    await served.command('stop');
  } catch (error) {
    // Makes all I/O that waits fail, and then waits until nobody has the device open.
    const gone = served.command('del', '--force', DEVICE).catch(() => undefined);
    await command('umount', ['--lazy', mountPoint]).catch(() => undefined);
    await gone;
    await served.command('stop', '--force').catch(() => served.kill());
    throw error;
  }
}

function differences(before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): string[] {
  return [...new Set([...before.keys(), ...after.keys()])].filter((path) => before.get(path) !== after.get(path));
}

/** Each step has its time: what waits for a device that nobody serves may end only after a later step took it away. */
async function undoAll(): Promise<string[]> {
  const problems: string[] = [];
  for (let step = undo.pop(); step; step = undo.pop()) {
    const late = sleep(UNDO_MS, undefined, { ref: false }).then(() => {
      throw new DemoError('cleaning up takes too long; something may be left');
    });
    await Promise.race([step(), late]).catch((error: unknown) => problems.push(messageOf(error)));
  }
  return problems;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;
const milliseconds = (ms = 0): string => `${ms.toFixed(0)} ms`;

const stopped = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => stopped.abort());
}
const problems: string[] = [];
try {
  await demonstrate(stopped.signal);
} catch (error) {
  if (!stopped.signal.aborted) problems.push(messageOf(error));
}
problems.push(...(await undoAll()));
// One line: what came first is the cause of what came after.
if (problems[0] !== undefined) process.stderr.write(`demo: failed: ${problems[0]}\n`);
process.exit(problems.length > 0 ? 1 : stopped.signal.aborted ? 130 : 0);
