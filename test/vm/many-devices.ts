import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/supervisor/status.js';
import { Load, verifiedWrites } from './fio.js';
import { Served, assertNothingLeft, hasEnded, processesNamed, waitFor, signal } from './harness.js';

/** Mass deaths among many devices of one supervisor: nobody is forgotten, and no client sees an error. */

const runtimeDir = '/run/many-devices';
/** Every so many devices one is in use. */
const LOADED_EVERY = 20;
/** Of a device among many that all recover at once, in an emulated guest. */
const ALL_LIVE_TIMEOUT_MS = 600_000;

const pidsOf = ({ queues }: DeviceStatus): (number | null)[] => queues.map(({ pid }) => pid);

export function testManyDevices(count: number, queues: number): void {
  const backends = ['ram', 'null', 'file'] as const;
  const devices = Array.from({ length: count }, (_, index) => {
    const name = `d${String(index).padStart(3, '0')}`;
    const type = backends[index % backends.length] ?? 'null';
    const place = type === 'file' ? { path: `/dev/shm/${name}.img` } : {};
    return { name, queues, depth: 16, backend: { type, size: '4MiB', ...place } };
  });

  test(`${String(count)} devices`, { timeout: 1_100_000 }, async (t) => {
    let served = await Served.start(devices, { runtimeDir });
    const allLive = (recoveries = 0): Promise<readonly DeviceStatus[]> =>
      waitFor(
        'all devices being live',
        async () => {
          const { devices: all } = await served.status();
          const ready = all.filter((device) => device.state === 'live' && device.recoveries >= recoveries);
          return ready.length === count && all;
        },
        ALL_LIVE_TIMEOUT_MS,
      );
    const before = await allLive();
    const loads = before
      .filter(({ backend }, index) => backend !== 'null' && index % LOADED_EVERY < 2)
      .map(({ name, path }) => ({ name, path: path ?? '', size: '4M', depth: 4, rate: 20 }))
      .map((job) => new Load((pass) => verifiedWrites(job, pass)));

    await t.test('A3 a supervisor that is killed leaves all of them to the next', async () => {
      process.kill(served.pid, 'SIGKILL');
      await served.exit;
      served = await Served.start(devices, { runtimeDir });
      const after = await allLive();
      const servers = (all: readonly DeviceStatus[]): unknown => new Map(all.map((each) => [each.name, pidsOf(each)]));
      assert.deepEqual(servers(after), servers(before));
      for (const { name, recoveries, lastExit } of after)
        assert.deepEqual([name, recoveries, lastExit], [name, 0, null]);
    });

    await t.test('A2 half of all queue processes killed at once: all recover', async () => {
      const killed = processesNamed('ublk/').filter((_, index) => index % 2 === 0);
      // The supervisor may be quick enough to end siblings itself.
      for (const pid of killed) signal(pid, 'SIGKILL');
      await waitFor('their death', () => killed.every(hasEnded));
      await allLive(queues > 1 ? 1 : 0);
    });

    await t.test('A2 all zygotes killed: all recover', async () => {
      const zygotes = processesNamed('ublk-zygote');
      assert.equal(zygotes.length, count);
      for (const pid of zygotes) process.kill(pid, 'SIGKILL');
      await waitFor('their death', () => zygotes.every(hasEnded));
      await allLive(queues > 1 ? 2 : 1);
    });

    await t.test('none of their users saw an error, and nothing is left', async () => {
      for (const load of loads) assert.ok((await load.stop()) > 0);
      assert.equal(await served.terminate(), 0);
      await assertNothingLeft(runtimeDir);
    });
  });
}
