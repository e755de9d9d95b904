// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { copyFile, readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/api/status.js';
import { arm, disarm, installFaultPoints, untilStruck } from './fault-points.js';
import { underVerifiedWrites } from './fio.js';
import {
  COMMAND_TIMEOUT_MS,
  RunningSupervisor,
  assertNothingLeft,
  isLinux,
  ok,
  processesNamed,
  root,
  waitFor,
  zygoteOf,
} from './harness.js';

/** Other code is installed in the place of what runs, good and bad; devices and supervisor go over to it, or stay. */

const runtimeDir = '/run/upgrade';
const recovery = { maxRestarts: 1000 };
const devices = [
  { name: 'ram', id: 0, queues: 2, recovery, backend: { type: 'ram', size: '16MiB' } },
  { name: 'file', id: 1, recovery, backend: { type: 'file', path: '/dev/shm/upgrade.img', size: '8MiB' } },
];
const library = join(root, 'build/Release/zygote.so');

async function install(text: string): Promise<void> {
  await writeFile(`${library}.new`, text);
  await rename(`${library}.new`, library);
}

const serversOf = ({ queues }: DeviceStatus): (number | undefined)[] => queues.map(({ pid }) => pid ?? undefined);
const zygotes = (): number[] => processesNamed('ublk-zygote');
const servedTimes = ({ log }: RunningSupervisor): number => log.split('"serving"').length - 1;

test('upgrade', { timeout: 1_100_000 }, async (t) => {
  let served = await RunningSupervisor.start(devices, { runtimeDir });
  const statuses = async (): Promise<readonly DeviceStatus[]> => {
    const { devices } = await served.status();
    return devices.toSorted((a, b) => (a.id ?? 0) - (b.id ?? 0));
  };
  const generations = async (): Promise<number[]> => (await statuses()).map(({ generation }) => generation);
  const zygotesOfDevices = async (): Promise<number[]> => (await statuses()).map(zygoteOf);
  /** One for each device, and one that forks them, when what is replaced has ended. */
  const settledZygotes = async (): Promise<number[]> => {
    await waitFor('the other zygotes and nurseries ending', () => {
      return zygotes().length === devices.length && processesNamed('ublk-nursery').length === 1;
    });
    return zygotesOfDevices();
  };
  const underLoad = async (act: () => Promise<void>): Promise<void> => {
    // Not as many as go: a supervisor that starts needs the CPUs, too.
    const load = { size: '4M', depth: 16, rate: 100 };
    const jobs = (await statuses()).map(({ name, path }) => ({ name, path: path ?? '', ...load }));
    await underVerifiedWrites(jobs, act);
  };
  const canGoBack = isLinux(6, 16);
  const skip = canGoBack ? false : 'no device can go back to the code before';

  await t.test('E3 is refused where a device could not go back', { skip: canGoBack && 'it can' }, async () => {
    const before = await statuses();
    const { code, stderr } = await served.command('upgrade');
    assert.equal(code, 1);
    assert.match(stderr, /on this kernel \(before Linux 6\.16\) a device could not go back to the code before/);
    assert.deepEqual([await generations(), (await statuses()).map(serversOf)], [[1, 1], before.map(serversOf)]);
    assert.deepEqual(await settledZygotes(), before.map(zygoteOf));
  });

  await t.test(
    'E3 every device goes over to a new zygote under fio verify, and the old ones end',
    { skip },
    async () => {
      const before = await zygotesOfDevices();
      await underLoad(async () => {
        const { code, stderr } = await served.command('upgrade');
        assert.deepEqual([code, stderr], [0, '']);
      });
      const after = await settledZygotes();
      assert.deepEqual(
        after.filter((zygote) => before.includes(zygote)),
        [],
      );
      assert.deepEqual(await generations(), [2, 2]);
      for (const { state, recoveries, lastExit } of await statuses()) {
        assert.deepEqual([state, recoveries, lastExit], ['live', 0, null]);
      }
      const sockets = (await readdir(runtimeDir)).filter((name) => name.startsWith('zygote'));
      assert.equal(sockets.length, devices.length);
      for (const zygote of after) process.kill(zygote, 'SIGKILL');
      for (const { name } of devices) await served.untilLive(name, 1);
    },
  );

  await t.test('E3 new code whose queue processes die: the old code serves again', { skip }, async () => {
    const [, zygoteOfFile] = await zygotesOfDevices();
    const [nursery] = processesNamed('ublk-nursery');
    await installFaultPoints();
    await arm('preparing', 0, 'SIGKILL', 1000);
    const before = await generations();
    await underLoad(async () => {
      const { code, stderr } = await served.command('upgrade');
      assert.equal(code, 1);
      assert.match(stderr, /upgrading failed: .*ram and the devices after it are served by the code before/);
    });
    await served.untilLive('ram');
    assert.equal((await settledZygotes())[1], zygoteOfFile);
    assert.deepEqual(processesNamed('ublk-nursery'), [nursery]);
    assert.equal((await generations())[1], before[1]);
    // What is new now is the old code's, too: the new code's would die, as often as it is armed for.
    const ram = await served.device('ram');
    process.kill(zygoteOf(ram), 'SIGKILL');
    const { generation } = await served.untilGeneration('ram', ram.generation + 1);
    assert.equal(generation, ram.generation + 1);
  });

  await t.test('E3 a library that cannot be loaded is refused before anything is touched', { skip }, async () => {
    const before = [await generations(), await zygotesOfDevices()];
    await copyFile(library, `${library}.good`);
    await install('this is no library');
    const { code, stderr } = await served.command('upgrade');
    assert.equal(code, 1);
    assert.match(stderr, /upgrading failed: .*zygote.*upgrade --self comes first/);
    assert.deepEqual([await generations(), await settledZygotes()], before);
    await rename(`${library}.good`, library);
  });

  await t.test('A3 a supervisor killed in the middle leaves zygotes of both to its successor', { skip }, async () => {
    const [, zygoteOfFile] = await zygotesOfDevices();
    await arm('preparing', 0, 'SIGSTOP');
    const upgrade = served.command('upgrade');
    await untilStruck();
    process.kill(served.pid, 'SIGKILL');
    await Promise.all([served.exit, upgrade]);
    await disarm();
    served = await RunningSupervisor.start(devices, { runtimeDir });
    const [ram, file] = await statuses();
    assert.deepEqual([ram?.state, file?.state], ['live', 'live']);
    assert.equal(file && zygoteOf(file), zygoteOfFile, 'who was served was not served on');
    await underLoad(async () => {
      assert.equal((await served.command('upgrade')).code, 0);
    });
    await settledZygotes();
  });

  await t.test('A3 the supervisor goes on as what is installed, and nobody notices', async () => {
    const before = await statuses();
    await served.configure([{ ...devices[0], queues: 0 }]);
    const refused = await served.command('upgrade', '--self');
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /what is installed now refuses .*queues/);
    assert.equal(servedTimes(served), 1);
    await served.configure(devices);
    await underLoad(async () => {
      const { code, stderr } = await served.command('upgrade', '--self');
      assert.deepEqual([code, stderr], [0, '']);
    });
    await waitFor('the successor', () => servedTimes(served) === 2, COMMAND_TIMEOUT_MS);
    assert.equal((await served.status()).supervisor.pid, served.pid);
    const after = await statuses();
    assert.deepEqual(after.map(serversOf), before.map(serversOf));
    assert.deepEqual(after.map(zygoteOf), before.map(zygoteOf));
    for (const { state, recoveries } of after) assert.deepEqual([state, recoveries], ['live', 0]);
  });

  await t.test('A3 that supervisor leaves no zombie of the one before', { skip }, async () => {
    assert.equal((await served.command('upgrade')).code, 0);
    await settledZygotes();
    const ours = await ok('ps', ['--ppid', String(served.pid), '-o', 'stat=,comm=']);
    assert.doesNotMatch(ours, /^Z/m, 'a nursery was not waited for');
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
