import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/api/status.js';
import { install, keepThisBuild } from './builds.js';
import { Load, verifiedWrites } from './fio.js';
import {
  RunningSupervisor,
  assertNothingLeft,
  cli,
  hasEnded,
  run,
  processesNamed,
  waitFor,
  signal,
} from './harness.js';

/** Mass deaths among many devices of one supervisor: nobody is forgotten, and no client sees an error. */

const runtimeDir = '/run/many-devices';
/** So many devices are in use: in an emulated guest a fio needs up to a fifth of a CPU. */
const LOADED = 4;
/** Of a device among many that all recover at once, in an emulated guest. */
const ALL_LIVE_TIMEOUT_MS = 1_800_000;

const IN_RECOVERY = 20;

const pidsOf = ({ queues }: DeviceStatus): (number | null)[] => queues.map(({ pid }) => pid);
const serversOf = (all: readonly DeviceStatus[]): unknown => new Map(all.map((each) => [each.name, pidsOf(each)]));

/** Whoever served them serves them, and nobody had to be replaced. */
function assertAdopted(after: readonly DeviceStatus[], before: readonly DeviceStatus[]): void {
  assert.deepEqual(serversOf(after), serversOf(before));
  for (const { name, recoveries, lastExit } of after) assert.deepEqual([name, recoveries, lastExit], [name, 0, null]);
}

export function testManyDevices(count: number, queues: number): void {
  const backends = ['ram', 'null', 'file'] as const;
  const devices = Array.from({ length: count }, (_, index) => {
    const name = `d${String(index).padStart(3, '0')}`;
    const type = backends[index % backends.length] ?? 'null';
    const place = type === 'file' ? { path: `/dev/shm/${name}.img` } : {};
    return { name, queues, depth: 16, backend: { type, size: '4MiB', ...place } };
  });

  test(`${count} devices`, { timeout: 7_000_000 }, async (t) => {
    let served = await RunningSupervisor.start(devices, { runtimeDir });
    const allLive = (isSo: (device: DeviceStatus) => boolean = () => true): Promise<readonly DeviceStatus[]> =>
      waitFor(
        'all devices being live',
        async () => {
          const { devices: all } = await served.status();
          const ready = all.filter((device) => device.state === 'live' && isSo(device));
          return ready.length === count && all;
        },
        ALL_LIVE_TIMEOUT_MS,
      );
    /** Waits until whoever served a device that a killed process belongs to has a successor. */
    const allReplaced = async (killed: readonly number[]): Promise<void> => {
      const dead = new Set<number | null>(killed);
      await allLive((device) => pidsOf(device).every((pid) => !dead.has(pid)));
    };
    const upgradeSelf = async (): Promise<void> => {
      const said = served.log.length;
      const { code, stderr } = await run(
        process.execPath,
        [cli, 'upgrade', '--self', '--runtime-dir', runtimeDir],
        ALL_LIVE_TIMEOUT_MS,
      );
      assert.deepEqual([code, stderr], [0, '']);
      const successor = (): boolean => served.log.slice(said).includes('"serving"');
      await waitFor('the successor', successor, ALL_LIVE_TIMEOUT_MS);
    };
    const before = await allLive();
    const loads = before
      .filter(({ backend }) => backend !== 'null')
      .filter((_, index, { length }) => index % Math.ceil(length / LOADED) === 0)
      .map(({ name, path }) => ({ name, path: path ?? '', size: '4M', depth: 4, rate: 20 }))
      .map((job) => new Load((pass) => verifiedWrites(job, pass)));

    await t.test('A3 a supervisor that is killed leaves all of them to the next', async () => {
      process.kill(served.pid, 'SIGKILL');
      await served.exit;
      served = await RunningSupervisor.start(devices, { runtimeDir });
      assertAdopted(await allLive(), before);
    });

    await t.test('A3 upgrade --self leaves all of them to what is installed now', async () => {
      await upgradeSelf();
      assertAdopted(await allLive(), before);
    });

    await t.test('A2 half of all queue processes killed at once: all recover', async () => {
      const killed = processesNamed('ublk/').filter((_, index) => index % 2 === 0);
      // The supervisor may be quick enough to end siblings itself.
      for (const pid of killed) signal(pid, 'SIGKILL');
      await waitFor('their death', () => killed.every(hasEnded), ALL_LIVE_TIMEOUT_MS);
      await allReplaced(killed);
    });

    await t.test('A2 all zygotes killed: all recover', async () => {
      const servers = (await allLive()).flatMap((device) => pidsOf(device).map(Number));
      const zygotes = processesNamed('ublk-zygote');
      assert.equal(zygotes.length, count);
      for (const pid of zygotes) process.kill(pid, 'SIGKILL');
      await waitFor('their death', () => zygotes.every(hasEnded), ALL_LIVE_TIMEOUT_MS);
      await allReplaced(servers);
    });

    await t.test('A3 a supervisor that is killed while it recovers some of them: the next goes on', async () => {
      const undisturbed = await allLive();
      const step = Math.floor(count / IN_RECOVERY);
      const victims = undisturbed.filter((_, index) => index % step === 0).slice(0, IN_RECOVERY);
      assert.equal(victims.length, IN_RECOVERY);
      const said = served.log.length;
      for (const victim of victims) process.kill(pidsOf(victim)[0] ?? 0, 'SIGKILL');
      await waitFor('the first recovery', () => served.log.slice(said).includes(' is recovering'));
      process.kill(served.pid, 'SIGKILL');
      await served.exit;
      served = await RunningSupervisor.start(devices, { runtimeDir });
      const after = await allLive();
      const others = (all: readonly DeviceStatus[]): DeviceStatus[] =>
        all.filter(({ name }) => victims.every((victim) => victim.name !== name));
      assertAdopted(others(after), others(undisturbed));
      const died = new Set(victims.map((victim) => pidsOf(victim)[0]));
      for (const device of after) for (const pid of pidsOf(device)) assert.ok(!died.has(pid), device.name);
    });

    await t.test('E3 upgrade --self to a build of another protocol version: all go on with other zygotes', async () => {
      const servers = (await allLive()).flatMap((device) => pidsOf(device).map(Number));
      const zygotes = processesNamed('ublk-zygote');
      await keepThisBuild();
      await install('other');
      await upgradeSelf();
      await allReplaced(servers);
      await waitFor('the end of the zygotes before', () => zygotes.every(hasEnded), ALL_LIVE_TIMEOUT_MS);
    });

    await t.test('none of their users saw an error, and nothing is left', async () => {
      for (const load of loads) assert.ok((await load.stop()) > 0);
      assert.equal(await served.terminate(), 0);
      await assertNothingLeft(runtimeDir);
    });
  });
}
