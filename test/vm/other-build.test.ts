// run: full
// needs: other-build
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/api/status.js';
import { install, keepThisBuild } from './builds.js';
import { underVerifiedWrites } from './fio.js';
import { RunningSupervisor, assertNothingLeft, processesNamed, root, trust, waitFor, zygoteOf } from './harness.js';

/** A supervisor of a build that cannot talk to the zygotes that it finds: their devices go on with new ones. */

const runtimeDir = '/run/other-build';
const recovery = { maxRestarts: 1000 };
const example = join(root, 'examples/ram-backend.js');
const devices = [
  { name: 'ram', queues: 2, recovery, backend: { type: 'ram', size: '16MiB' } },
  { name: 'file', recovery, backend: { type: 'file', path: '/dev/shm/other-build.img', size: '8MiB' } },
  { name: 'script', recovery, backend: { type: example, size: 8 << 20 } },
];

test('another build', { timeout: 1_100_000 }, async (t) => {
  await trust(example);
  await keepThisBuild();
  let served = await RunningSupervisor.start(devices, { runtimeDir });
  const statuses = async (): Promise<readonly DeviceStatus[]> => (await served.status()).devices;
  const zygotes = async (): Promise<number[]> => (await statuses()).map(zygoteOf);
  const underLoad = async (act: () => Promise<void>): Promise<void> => {
    const jobs = (await statuses()).map(({ name, path }) => ({
      name,
      path: path ?? '',
      size: '4M',
      depth: 16,
      rate: 100,
    }));
    await underVerifiedWrites(jobs, act);
  };
  const allGoOnWithOthers = async (before: readonly number[]): Promise<void> => {
    for (const { name } of devices) await served.untilLive(name, 0, 120_000);
    const after = await zygotes();
    assert.deepEqual(
      after.filter((zygote) => before.includes(zygote)),
      [],
    );
    await waitFor('the end of the zygotes before', () => processesNamed('ublk-zygote').length === devices.length);
  };

  await t.test('E3 zygotes of another build are refused to a supervisor of this one', async () => {
    const before = await zygotes();
    await install('other', ['zygote.so']);
    const { code, stderr } = await served.command('upgrade');
    assert.equal(code, 1);
    assert.match(stderr, /upgrade --self comes first|before Linux 6\.16/);
    assert.deepEqual(await zygotes(), before);
  });

  for (const build of ['other', 'this'] as const) {
    await t.test(`E3 A3 the supervisor goes on as ${build} build, and nobody sees an error`, async () => {
      const before = await zygotes();
      await install(build);
      await underLoad(async () => {
        const { code, stderr } = await served.command('upgrade', '--self');
        assert.deepEqual([code, stderr], [0, '']);
        await allGoOnWithOthers(before);
      });
      assert.equal((await served.status()).supervisor.pid, served.pid);
    });
  }

  await t.test('A3 the supervisor is killed, and its successor is another build', async () => {
    const before = await zygotes();
    await install('other');
    await underLoad(async () => {
      process.kill(served.pid, 'SIGKILL');
      await served.exit;
      served = await RunningSupervisor.start(devices, { runtimeDir });
      await allGoOnWithOthers(before);
    });
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
