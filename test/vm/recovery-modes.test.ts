// kernels: newest
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { test } from 'node:test';
import { ublkFeatures } from '../../src/native/addon/system.js';
import type { DeviceStatus } from '../../src/api/status.js';
import { featureFlag } from '../../src/supervisor/host/ublk-features.js';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { Load, failingWrites } from './fio.js';
import { RunningSupervisor, assertNothingLeft, processesNamed, traces, waitFor, type ApiResponse } from './harness.js';
import { random, seed } from './random.js';

/** What a device does that is told not to recover, or not always, or not without errors. */

const MiB = 2 ** 20;
const DEPTH = 64;
const KILLS = 5;
/** Far more than it takes until a kill meets a request that is being served. */
const MOST_KILLS = 50;

const backend = { type: 'ram', size: '16MiB' };
const devices = [
  { name: 'fails', queues: 2, backend, recovery: { mode: 'fail-inflight', maxRestarts: 1000 } },
  { name: 'manual', queues: 2, backend, recovery: { auto: false } },
  { name: 'parks', backend, recovery: { maxRestarts: 2, window: '10min', onGiveUp: 'park' } },
  { name: 'stops', backend, recovery: { maxRestarts: 1, window: '10min', onGiveUp: 'stop' } },
  { name: 'fails-io', queues: 2, backend, recovery: { mode: 'fail-io', auto: false } },
  { name: 'bystander', backend },
];

const pathOf = ({ name, path }: DeviceStatus): string => path ?? assert.fail(`${name} has no path`);

function killOne({ queues }: DeviceStatus): void {
  const pids = queues.flatMap(({ pid }) => pid ?? []);
  process.kill(pids[random(pids.length)] ?? assert.fail('no queue process'), 'SIGKILL');
}

const codeOf = (error: unknown): string | undefined => (error as NodeJS.ErrnoException).code;

const untilState = async (served: RunningSupervisor, name: string, state: string): Promise<DeviceStatus> =>
  waitFor(`device ${name} being ${state}`, async () => {
    const device = await served.device(name);
    return device.state === state && device;
  });

const recover = async (served: RunningSupervisor, name: string): Promise<ApiResponse> =>
  served.api('POST', `/v1/devices/${name}/recover`);

/** A write by a process of its own, as it may wait for as long as it likes. */
class SeparateWrite {
  readonly exit: Promise<number>;
  readonly #pid: number;
  #ended = false;

  constructor(path: string) {
    const options = ['if=/dev/zero', `of=${path}`, 'bs=4096', 'count=1', 'oflag=direct', 'conv=notrunc', 'status=none'];
    const child = spawn('dd', options, { stdio: 'ignore' });
    this.#pid = child.pid ?? assert.fail('dd did not start');
    this.exit = new Promise((resolve) => {
      child.once('exit', (code) => {
        this.#ended = true;
        resolve(code ?? -1);
      });
    });
  }

  /** Resolves when the kernel makes it wait for the device. */
  async untilWaiting(): Promise<void> {
    await waitFor('a write waiting', () => this.isWaiting());
  }

  isWaiting(): boolean {
    assert.ok(!this.#ended, 'the write did not wait');
    return readFileSync(`/proc/${this.#pid}/stack`, 'utf8').includes('blkdev_write_iter');
  }
}

test('devices that may not simply recover', { timeout: 1_100_000 }, async (t) => {
  t.diagnostic(`seed ${seed}`);
  const served = await RunningSupervisor.start(devices);
  const canFailIo = (ublkFeatures() & featureFlag('USER_RECOVERY_FAIL_IO')) !== 0n;
  const data = randomBytes(MiB);

  await t.test('fail-inflight: what was being served fails, the rest waits', async () => {
    const path = pathOf(await served.device('fails'));
    const written = async (): Promise<number> =>
      (await served.device('fails')).queues.reduce((sum, { write }) => sum + write.count, 0);
    let kills = 0;
    let failed = 0;
    while (failed === 0) {
      assert.ok(kills < MOST_KILLS, 'no request failed');
      const job = { name: 'fails', path, size: '16M', depth: DEPTH };
      const load = new Load((pass) => failingWrites(job, kills + pass, constants.errno.EIO));
      for (let kill = 0; kill < KILLS; kill++) {
        const before = await written();
        await waitFor('requests being served', async () => (await written()) > before);
        killOne(await served.device('fails'));
        kills++;
        const { lastExit } = await served.untilLive('fails', kills);
        assert.equal(lastExit?.signal, 'SIGKILL');
        assert.equal((await recover(served, 'fails')).status, 200);
      }
      failed += await load.stop();
    }
    t.diagnostic(`fail-inflight: ${failed} requests failed in ${kills} kills`);
    assert.ok(failed <= kills * DEPTH, 'requests failed that were made when nobody served');
    await using direct = await DirectFile.open(path);
    assert.equal(await direct.write(0, data), MiB);
    assert.ok(data.equals(await direct.read(0, MiB)));
  });

  await t.test('auto: false: I/O waits until somebody says recover', async () => {
    const before = await served.device('manual');
    for (let round = 1; round <= 2; round++) {
      killOne(await served.device('manual'));
      const degraded = await untilState(served, 'manual', 'degraded');
      assert.match(degraded.reason ?? '', /was killed by SIGKILL.*automatic recovery is off.*recover manual/);
      assert.deepEqual([degraded.recoveries, degraded.generation], [round - 1, round]);
      assert.ok(degraded.queues.every(({ pid }) => pid === null));
      assert.deepEqual(processesNamed(`ublk/${String(before.id)}/`), [], 'a process is left of a dead generation');
      const write = new SeparateWrite(pathOf(before));
      await write.untilWaiting();
      assert.equal((await served.device('manual')).state, 'degraded');
      assert.ok(write.isWaiting());
      assert.equal((await recover(served, 'manual')).status, 200);
      assert.equal(await write.exit, 0);
      const after = await served.device('manual');
      assert.deepEqual([after.state, after.reason, after.recoveries], ['live', null, round]);
    }
  });

  await t.test(
    'D1 too many restarts, park: I/O waits until somebody says recover, which allows as many again',
    async () => {
      const before = await served.device('parks');
      let recoveries = 0;
      for (let round = 1; round <= 2; round++) {
        for (let restart = 1; restart <= 2; restart++) {
          killOne(await served.device('parks'));
          await served.untilLive('parks', ++recoveries);
        }
        killOne(await served.device('parks'));
        const degraded = await untilState(served, 'parks', 'degraded');
        assert.match(degraded.reason ?? '', /the limit of 2 restarts in 600 s is reached.*recover parks/);
        const write = new SeparateWrite(pathOf(before));
        await write.untilWaiting();
        assert.equal((await served.device('parks')).recoveries, recoveries);
        assert.ok(write.isWaiting());
        assert.equal((await recover(served, 'parks')).status, 200);
        recoveries++;
        assert.equal(await write.exit, 0);
      }
      assert.equal((await served.device('parks')).recoveries, recoveries);
    },
  );

  await t.test('D1 too many restarts, stop: the device goes and I/O fails', async () => {
    const before = await served.device('stops');
    {
      await using direct = await DirectFile.open(pathOf(before));
      await direct.write(0, data);
      killOne(before);
      await served.untilLive('stops', 1);
      const endless = (async () => {
        for (;;) await direct.write(MiB, data);
      })();
      killOne(await served.device('stops'));
      await assert.rejects(endless, (error) => ['EIO', 'ENODEV', 'ENXIO'].includes(codeOf(error) ?? ''));
    }
    const failed = await untilState(served, 'stops', 'failed');
    assert.match(failed.reason ?? '', /was killed by SIGKILL.*the limit of 1 restarts in 600 s is reached/);
    assert.deepEqual([failed.path, failed.recoveries], [null, 1]);
    assert.ok(before.id !== null);
    const { id } = before;
    await waitFor('the device going', () => traces(id).length === 0);
    assert.equal((await recover(served, 'stops')).status, 200);
    const again = await served.device('stops');
    assert.equal(again.state, 'live');
    await using direct = await DirectFile.open(pathOf(again));
    assert.ok(data.equals(await direct.read(0, MiB)), 'the data did not outlive the device');
  });

  await t.test(canFailIo ? 'fail-io: I/O fails until somebody says recover' : 'fail-io is refused here', async () => {
    const device = await served.device('fails-io');
    if (!canFailIo) {
      assert.deepEqual([device.state, device.id, device.path, device.generation], ['failed', null, null, 0]);
      assert.match(device.reason ?? '', /the kernel does not grant USER_RECOVERY_FAIL_IO \(Linux 6.13\)/);
      const refused = await recover(served, 'fails-io');
      assert.equal(refused.status, 409);
      assert.match(JSON.stringify(refused.body), /USER_RECOVERY_FAIL_IO/);
      assert.equal((await served.status()).devices.filter(({ id }) => id !== null).length, devices.length - 1);
      assert.ok(!existsSync(`/dev/ublkc${devices.length - 1}`), 'a device of the refused one is left');
      return;
    }
    await using direct = await DirectFile.open(pathOf(device));
    await direct.write(0, data);
    killOne(device);
    const degraded = await untilState(served, 'fails-io', 'degraded');
    assert.match(degraded.reason ?? '', /automatic recovery is off/);
    // What comes while the kernel still takes leave of the dead server is EIO.
    await waitFor('the kernel failing I/O at once', async () => {
      const error = await direct.write(MiB, data).then(() => assert.fail('a write succeeded'), codeOf);
      return error === 'EREMOTEIO' || (assert.equal(error, 'EIO'), false);
    });
    assert.equal(await direct.read(0, MiB).then(() => assert.fail('a read succeeded'), codeOf), 'EREMOTEIO');
    assert.equal((await recover(served, 'fails-io')).status, 200);
    assert.ok(data.equals(await direct.read(0, MiB)));
    assert.equal(await direct.write(MiB, data), MiB);
  });

  const { recoveries, generation } = await served.device('bystander');
  assert.deepEqual([recoveries, generation], [0, 1], 'another device was disturbed');
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir, /I\/O error, dev ublkb[0-9]+, sector/);
});
