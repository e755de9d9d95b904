import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import type { DeviceStatus } from '../../src/api/status.js';
import { Load, verifiedWrites } from './fio.js';
import { RunningSupervisor, assertNothingLeft, processesNamed, waitFor, zygoteOf, signal } from './harness.js';
import { random, seed } from './random.js';

/** Whatever is killed below a device, whoever uses it sees no error and no wrong data. */

const recovery = { maxRestarts: 1000, window: '60s' };
const devices = [
  { name: 'killed', queues: 2, depth: 64, recovery, backend: { type: 'ram', size: '64MiB' } },
  { name: 'bystander', queues: 1, depth: 16, recovery, backend: { type: 'ram', size: '16MiB' } },
];

const SINGLE_KILLS = 30;
const WHOLE_KILLS = 6;
const ZYGOTE_KILLS = 3;

/** Ample for a busy emulated machine; without recovery the pause would have no end. */
const LONGEST_PAUSE_MS = 10_000;

const pidsOf = (device: DeviceStatus): number[] => device.queues.map(({ pid }) => pid ?? assert.fail('no process'));

const openFiles = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

test('users of a device see neither errors nor wrong data', { timeout: 1_100_000 }, async (t) => {
  t.diagnostic(`seed ${seed}`);
  const served = await RunningSupervisor.start(devices);
  const { path } = await served.device('killed');
  const { path: bystanderPath } = await served.device('bystander');
  assert.ok(path && bystanderPath);
  const job = { name: 'killed', path, size: '8M', depth: 32 };
  const lightJob = { name: 'bystander', path: bystanderPath, size: '1M', depth: 2, rate: 100 };
  const load = new Load((pass) => verifiedWrites(job, pass));
  const lightLoad = new Load((pass) => verifiedWrites(lightJob, pass));
  const pauses: number[] = [];
  let recoveries = 0;

  /** Kills while the device serves, then waits until it does again. */
  async function survive(kill: (device: DeviceStatus) => void): Promise<void> {
    const before = await served.untilLive('killed', recoveries);
    // Requests in flight and requests between the kills, at random.
    await setTimeout(random(100));
    kill(before);
    recoveries += 1;
    const after = await Promise.race([served.untilLive('killed', recoveries), failureOf(load, lightLoad)]);
    assert.equal(after.recoveries, recoveries);
    assert.equal(after.generation, recoveries + 1);
    assert.ok(after.lastPauseMs !== null && after.lastPauseMs > 0 && after.lastPauseMs < LONGEST_PAUSE_MS);
    pauses.push(after.lastPauseMs);
    const old = new Set(pidsOf(before));
    assert.ok(
      pidsOf(after).every((pid) => !old.has(pid)),
      'a process of the old generation serves on',
    );
    await Promise.all([...old].map((pid) => waitFor(`process ${pid} ending`, () => !isAlive(pid))));
    // Generations that die young are started ever more slowly, which is not what this test is about.
    assert.equal((await served.api('POST', '/v1/devices/killed/recover')).status, 200);
  }

  async function wrote(): Promise<void> {
    const sum = (device: DeviceStatus): number => device.queues.reduce((total, { write }) => total + write.count, 0);
    const before = sum(await served.device('killed'));
    await waitFor('the load going on', async () => sum(await served.device('killed')) > before);
  }

  await t.test('A1 one queue process killed, again and again', async () => {
    await wrote();
    let files = 0;
    const hit = [0, 0];
    for (let kill = 0; kill < SINGLE_KILLS; kill++) {
      const queue = random(2);
      await survive((device) => process.kill(pidsOf(device)[queue] ?? assert.fail(), 'SIGKILL'));
      const { lastExit } = await served.device('killed');
      assert.deepEqual([lastExit?.queue, lastExit?.signal, lastExit?.code], [queue, 'SIGKILL', null]);
      hit[queue] = (hit[queue] ?? 0) + 1;
      if (kill === 0) files = openFiles(served.pid);
    }
    assert.ok(hit.every((count) => count > 0));
    await waitFor('the supervisor closing files', () => openFiles(served.pid) <= files, 5_000);
    const { recoveries: others, generation, lastExit, queues } = await served.device('bystander');
    assert.deepEqual([others, generation, lastExit], [0, 1, null], 'another device was disturbed');
    assert.ok(queues.every(({ write }) => write.count > 0 && write.errors === 0));
    await wrote();
  });

  await t.test('A2 all queue processes of the device killed at once', async () => {
    for (let kill = 0; kill < WHOLE_KILLS; kill++) {
      await survive((device) => {
        // The supervisor may be quick enough to end the siblings itself.
        for (const pid of pidsOf(device)) signal(pid, 'SIGKILL');
      });
      assert.equal((await served.device('killed')).lastExit?.signal, 'SIGKILL');
    }
    assert.equal((await served.device('bystander')).recoveries, 0);
    await wrote();
  });

  await t.test('A2 its zygote killed, and with it its queue processes', async () => {
    const files = openFiles(served.pid);
    for (let kill = 1; kill <= ZYGOTE_KILLS; kill++) {
      await survive((device) => process.kill(zygoteOf(device), 'SIGKILL'));
      assert.equal((await served.device('bystander')).recoveries, 0);
    }
    await survive(() => {
      for (const pid of [...processesNamed('ublk-zygote'), ...processesNamed('ublk-nursery')]) {
        process.kill(pid, 'SIGKILL');
      }
    });
    const bystander = await served.untilLive('bystander', 1);
    assert.deepEqual([bystander.recoveries, bystander.generation], [1, 2]);
    await waitFor('the supervisor closing files', () => openFiles(served.pid) <= files, 5_000);
    await wrote();
  });

  await t.test('nothing was lost, and nothing is left', async () => {
    const written = await load.stop();
    const lightlyWritten = await lightLoad.stop();
    assert.ok(written > 0 && lightlyWritten > 0);
    pauses.sort((one, other) => one - other);
    const median = pauses[Math.floor(pauses.length / 2)] ?? NaN;
    t.diagnostic(`${written} and ${lightlyWritten} verified writes, ${recoveries} recoveries`);
    t.diagnostic(`pause: median ${median.toFixed(0)} ms, longest ${(pauses.at(-1) ?? NaN).toFixed(0)} ms`);
    for (const { queues, state, reason } of (await served.status()).devices) {
      assert.deepEqual([state, reason], ['live', null]);
      for (const { read, write } of queues) assert.deepEqual([read.errors, write.errors], [0, 0]);
    }
    assert.deepEqual(processesNamed('ublk/').length, 3);
    assert.deepEqual(processesNamed('ublk-control'), []);
    assert.equal(await served.terminate(), 0);
    await assertNothingLeft(served.runtimeDir);
  });
});

/** Never resolves; rejects when one of the loads does, so that nobody waits for what can no longer come. */
async function failureOf(...loads: readonly Load[]): Promise<never> {
  return Promise.race(loads.map(async ({ done }) => done.then(() => assert.fail('a load ended by itself'))));
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
