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
import { Served, assertNothingLeft, hasEnded, root, shell, waitFor } from './harness.js';

/** Memory of the whole machine swapped to a device of ours whose processes die: nobody waits for ever, nothing is lost. */

const runtimeDir = '/run/swap';
const MIB = 2 ** 20;
const SWAP = 256 * MIB;
const KILLS = 6;
const KILL_EVERY_MS = 10_000;
const RECOVERY_TIMEOUT_MS = 120_000;
const recovery = { maxRestarts: 1000 };
const backends = [
  { name: 'file', recovery, backend: { type: 'file', path: '/dev/vda' } },
  { name: 'javascript', recovery, backend: { type: join(root, 'examples/ram-backend.js'), size: SWAP } },
  { name: 'ram', recovery, backend: { type: 'ram', size: SWAP } },
];

const swapped = async (): Promise<number> => {
  const used = /^\S+\s+\S+\s+[0-9]+\s+([0-9]+)/m.exec((await readFile('/proc/swaps', 'utf8')).replace(/^.*\n/, ''));
  return Number(used?.[1] ?? 0) / 1024;
};

for (const device of backends) {
  test(`D2 swap on ${device.name}`, { timeout: 700_000 }, async () => {
    const served = await Served.start([device], { runtimeDir });
    const { path } = await served.device(device.name);
    await shell(`mkswap -q ${path ?? ''}; swapon ${path ?? ''}`);
    const program = join(root, 'dist/test/vm/memory-user.js');
    const mebibytes = Math.floor(freemem() / MIB) + 100;
    const user = spawn(process.execPath, [program, String(mebibytes)], { stdio: ['ignore', 'ignore', 'inherit'] });
    const ended = new Promise<number | null>((resolve) => user.once('exit', resolve));
    const { pid = 0 } = user;
    await waitFor('something being swapped', async () => (await swapped()) > 50, RECOVERY_TIMEOUT_MS);
    for (let kill = 0; kill < KILLS; kill++) {
      const { generation, queues } = await served.device(device.name);
      process.kill(queues[0]?.pid ?? 0, 'SIGKILL');
      await served.untilGeneration(device.name, generation + 1, RECOVERY_TIMEOUT_MS);
      assert.ok(!hasEnded(pid), 'the user of memory has ended');
      await setTimeout(KILL_EVERY_MS);
    }
    process.stdout.write(
      `# ${device.name}: ${String(mebibytes)} MiB in use, ${(await swapped()).toFixed(0)} swapped\n`,
    );
    user.kill('SIGTERM');
    assert.equal(await ended, 0);
    await shell(`swapoff ${path ?? ''}`);
    assert.equal(await served.terminate(), 0);
    await assertNothingLeft(runtimeDir);
  });
}
