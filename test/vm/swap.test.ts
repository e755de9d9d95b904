// run: full
// kernels: newest
// guest: --memory 1G --disk 512M --timeout 2400
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { freemem } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { Cgroup } from './cgroup.js';
import { RunningSupervisor, assertNothingLeft, hasEnded, root, shell, waitFor } from './harness.js';

/** Memory of the whole machine swapped to a device of ours whose processes die: nobody waits for ever, nothing is lost. */

const runtimeDir = '/run/swap';
const MIB = 2 ** 20;
const SWAP = 256 * MIB;
const KILLS = 6;
const KILL_EVERY_MS = 10_000;
/** Also of what only waits for memory. */
const TIMEOUT_MS = 300_000;
const recovery = { maxRestarts: 1000 };
const file = { name: 'file', recovery, backend: { type: 'file', path: '/dev/vda' } };
const unsafe = [
  { name: 'ram', backend: { type: 'ram', size: SWAP } },
  { name: 'javascript', backend: { type: join(root, 'examples/ram-backend.js'), size: SWAP } },
];

const swapped = async (): Promise<number> => {
  const used = /^\S+\s+\S+\s+[0-9]+\s+([0-9]+)/m.exec((await readFile('/proc/swaps', 'utf8')).replace(/^.*\n/, ''));
  return Number(used?.[1] ?? 0) / 1024;
};

test('D2 memory is swapped to a device whose processes die', { timeout: 1_100_000 }, async () => {
  const group = await Cgroup.make('kept', { 'memory.swap.max': '0' });
  const under = ['bash', '-c', `echo 0 > ${group.path}/cgroup.procs; exec "$@"`, 'bash'];
  const served = await RunningSupervisor.start([file], { runtimeDir, under });
  const { path } = await served.device('file');
  await shell(`mkswap -q ${path ?? ''}; swapon ${path ?? ''}`);
  const program = join(root, 'dist/test/vm/memory-user.js');
  const mebibytes = Math.floor(freemem() / MIB) + 100;
  const user = spawn(process.execPath, [program, String(mebibytes)], { stdio: ['ignore', 'ignore', 'inherit'] });
  const ended = new Promise<number | null>((resolve) => user.once('exit', resolve));
  const { pid = 0 } = user;
  await waitFor('something being swapped', async () => (await swapped()) > 50, TIMEOUT_MS);
  for (let kill = 0; kill < KILLS; kill++) {
    const { generation, queues } = await served.device('file');
    process.kill(queues[0]?.pid ?? 0, 'SIGKILL');
    await served.untilGeneration('file', generation + 1, TIMEOUT_MS);
    assert.ok(!hasEnded(pid), 'the user of memory has ended');
    // Nothing waits for this: so long its processes serve between two deaths.
    await setTimeout(KILL_EVERY_MS);
  }
  assert.ok((await swapped()) > 50);
  user.kill('SIGTERM');
  assert.equal(await ended, 0);
  await shell(`swapoff ${path ?? ''}`);
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
  await group.remove();
});

test('D2 doctor warns of swap where it may stand still', async () => {
  const served = await RunningSupervisor.start(unsafe, { runtimeDir });
  const paths = (await served.status()).devices.map(({ path }) => path ?? '');
  for (const path of paths) await shell(`mkswap -q ${path}; swapon ${path}`);
  const { stdout } = await served.command('doctor');
  assert.match(stdout, /^warn +swap: on device \S+ \(\S+\), device \S+ \(\S+\); what serves it/m);
  for (const path of paths) await shell(`swapoff ${path}`);
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
