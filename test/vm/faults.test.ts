// kernels: newest
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { arm, disarm, installFaultPoints, isWaiting, untilFetched, untilStruck } from './fault-points.js';
import {
  RunningSupervisor,
  assertNothingLeft,
  hasEnded,
  isLinux,
  processesNamed,
  root,
  run,
  waitFor,
} from './harness.js';
import type { DeviceStatus } from '../../src/api/status.js';
import { Witness } from './witness.js';

/** Queue processes that die or hang before they serve, at a first start and as replacements. */

const ram = { type: 'ram', size: '16MiB' };
/** The last queue's last FETCH of a first start waits until all are known to live. */
const keepsOneBack = isLinux(6, 16) && !isLinux(7, 0);
const IDLE_TIMEOUT_MS = 4_000;
const IDLE_TIMEOUT = `${IDLE_TIMEOUT_MS}ms`;
const queuePid = (device: DeviceStatus, queue: number): number => {
  const pid = device.queues[queue]?.pid;
  assert.ok(pid, `queue ${queue} of ${device.name} has no process`);
  return pid;
};

test('faults before a generation serves', async (t) => {
  await installFaultPoints();
  const served = await RunningSupervisor.start([
    { name: 'witness', backend: ram },
    { name: 'twin', queues: 2, backend: ram, recovery: { maxRestarts: 1000 } },
    { name: 'loop', queues: 2, backend: ram, recovery: { maxRestarts: 3 } },
  ]);
  const { path } = await served.device('witness');
  assert.ok(path);
  const witness = await Witness.of(path);

  const add = async (name: string, settings: object = {}): Promise<DeviceStatus> => {
    const { status, body } = await served.api('POST', '/v1/devices', { name, backend: ram, ...settings });
    assert.equal(status, 201, JSON.stringify(body));
    return body as DeviceStatus;
  };
  const remove = async (name: string): Promise<void> => {
    assert.equal((await served.api('DELETE', `/v1/devices/${name}`)).status, 200);
  };
  /** A read that waits for whatever goes on with the device, and must succeed. */
  const read = (device: DeviceStatus): Promise<unknown> =>
    run('dd', [`if=${device.path ?? ''}`, 'of=/dev/null', 'bs=4k', 'count=4', 'iflag=direct', 'status=none']).then(
      ({ code, stderr }) => assert.equal(code, 0, stderr),
    );

  await t.test('A6 a first generation that dies is followed by another on a device made anew', async () => {
    const common = ['preparing', 'fetching', 'fetched', 'announced'] as const;
    const points = { 0: common, 1: keepsOneBack ? ([...common, 'permitted', 'complete'] as const) : common };
    for (const queue of [0, 1] as const) {
      for (const point of points[queue]) {
        const name = `${point}-${queue}`;
        await arm(point, queue, 'SIGKILL');
        await add(name, { queues: 2 });
        await untilStruck();
        // Dead right after its last announcement, it may have been live for a moment.
        const device = await served.untilGeneration(name, 2);
        assert.deepEqual(
          [device.generation, device.lastExit?.queue, device.lastExit?.signal],
          [2, queue, 'SIGKILL'],
          name,
        );
        await read(device);
        await remove(name);
      }
    }
  });

  await t.test('A6 so does one of which only a part had fetched', async () => {
    await arm('fetching', 1, 'SIGSTOP');
    const adding = add('half', { queues: 2 });
    await untilStruck();
    const half = await served.device('half');
    await untilFetched(queuePid(half, 0));
    process.kill(queuePid(half, 1), 'SIGKILL');
    const device = await adding;
    assert.deepEqual([device.state, device.generation], ['live', 2]);
    await read(device);
    await remove('half');
  });

  await t.test('A6 so does one that lacks only the FETCH that was kept back', { skip: !keepsOneBack }, async () => {
    await arm('permitted', 1, 'SIGSTOP');
    const adding = add('almost', { queues: 2 });
    await untilStruck();
    process.kill(queuePid(await served.device('almost'), 0), 'SIGKILL');
    const device = await adding;
    assert.deepEqual([device.state, device.generation], ['live', 2]);
    await read(device);
    await remove('almost');
  });

  await t.test(
    'a native queue process without a user of its own can neither open files nor signal others',
    async () => {
      await arm('fetching', 0, 'none');
      await add('confined');
      await untilStruck();
      await remove('confined');
    },
  );

  await t.test('A6 a replacement that dies before its FETCHes is followed by another', async () => {
    await arm('preparing', 1, 'SIGKILL');
    const before = await served.device('twin');
    process.kill(queuePid(before, 0), 'SIGKILL');
    await untilStruck();
    const reading = read(before);
    const { generation } = await served.untilGeneration('twin', before.generation + 2);
    assert.equal(generation, before.generation + 2);
    await reading;
  });

  // A device that becomes live after one of its queue processes died cannot be recovered up to 6.14.
  const ends: Record<string, (queues: readonly [number, number]) => Promise<void> | void> = {
    'that dies when only the kernel knows that it has fetched': (queues) => {
      process.kill(queues[1], 'SIGKILL');
    },
    'of which one half has died when the other says that it has fetched': async (queues) => {
      process.kill(served.pid, 'SIGSTOP');
      try {
        process.kill(queues[0], 'SIGKILL');
        await waitFor('the death', () => hasEnded(queues[0]));
        process.kill(queues[1], 'SIGCONT');
        await waitFor('the announcement', async () => hasEnded(queues[1]) || (await isWaiting(queues[1])));
      } finally {
        process.kill(served.pid, 'SIGCONT');
      }
    },
    'that dies as the device becomes live': async (queues) => {
      await arm('announced', 1, 'SIGKILL');
      process.kill(queues[1], 'SIGCONT');
    },
  };
  for (const [how, end] of Object.entries(ends)) {
    await t.test(`A6 so is one ${how}`, async () => {
      await arm('fetched', 1, 'SIGSTOP');
      const before = await served.device('twin');
      process.kill(queuePid(before, 0), 'SIGKILL');
      await untilStruck();
      const replacement = await served.device('twin');
      const queues = [queuePid(replacement, 0), queuePid(replacement, 1)] as const;
      await untilFetched(queues[0]);
      const reading = read(before);
      await end(queues);
      const { generation } = await served.untilGeneration('twin', before.generation + 2);
      assert.equal(generation, before.generation + 2);
      await reading;
    });
  }

  await t.test('D1 a crash loop ends at the restart limit, with the I/O waiting', async () => {
    await arm('preparing', 0, 'SIGKILL', 1000);
    const logged = served.log.length;
    const before = await served.device('loop');
    process.kill(queuePid(before, 1), 'SIGKILL');
    const parked = await waitFor('the device being parked', async () => {
      const device = await served.device('loop');
      return device.state === 'degraded' && device;
    });
    assert.equal(parked.generation, 4, parked.reason ?? '');
    assert.match(parked.reason ?? '', /queue process 0 .* was killed by SIGKILL; the limit of 3 restarts in 60 s/);
    // A few lines a restart, and none while it rests.
    const lines = served.log
      .slice(logged)
      .split('\n')
      .filter((line) => line.includes('"loop"'));
    assert.ok(lines.length <= 4 * 4, lines.join('\n'));
    const reading = read(before);
    await disarm();
    assert.equal((await served.api('POST', '/v1/devices/loop/recover')).status, 200);
    await reading;
    assert.equal((await served.device('loop')).state, 'live');
  });

  await t.test('D1 a crash loop at the first start ends at the limit and leaves nothing', async () => {
    await arm('fetching', 0, 'SIGKILL', 1000);
    const device = { name: 'never', queues: 2, backend: ram, recovery: { maxRestarts: 3 } };
    const { body } = await served.api('POST', '/v1/devices', device);
    assert.match(JSON.stringify(body), /was killed by SIGKILL; the limit of 3 restarts in 60 s is reached/);
    await disarm();
    assert.equal((await served.api('GET', '/v1/devices/never')).status, 404);
  });

  await t.test('A8 a generation that hangs is ended at the deadline, at a first start and as replacement', async () => {
    const begun = performance.now();
    await arm('preparing', 1, 'SIGSTOP');
    const before = await served.device('twin');
    process.kill(queuePid(before, 0), 'SIGKILL');
    await untilStruck();
    const reading = read(before);
    await arm('preparing', 0, 'SIGSTOP');
    const first = add('hangs-early');
    await untilStruck();
    await arm('fetching', 0, 'SIGSTOP');
    const second = add('hangs-late');
    await untilStruck();
    await witness.round();
    assert.equal((await add('another')).state, 'live', 'others cannot be added meanwhile');
    for (const { state, generation } of await Promise.all([first, second])) {
      assert.deepEqual([state, generation], ['live', 2]);
    }
    const { generation } = await served.untilGeneration('twin', before.generation + 2);
    assert.equal(generation, before.generation + 2);
    await reading;
    const took = performance.now() - begun;
    assert.ok(took > 9_000 && took < 120_000, `it took ${took} ms`);
  });

  const { state, recoveries, lastExit } = await served.device('witness');
  assert.deepEqual([state, recoveries, lastExit], ['live', 0, null]);

  const { generation: settled } = await served.device('twin');
  const newestZygote = (): number => processesNamed('ublk-zygote').at(-1) ?? assert.fail('there is no zygote');
  const assertOthersAlone = async (): Promise<void> => {
    assert.equal((await served.device('witness')).recoveries, 0);
    assert.equal((await served.device('twin')).generation, settled);
  };
  await t.test('A2 a zygote that dies in the middle of a start takes no device along', async () => {
    await arm('preparing', 0, 'SIGSTOP');
    const adding = add('orphaned');
    await untilStruck();
    process.kill(newestZygote(), 'SIGKILL');
    assert.deepEqual([(await adding).state, (await adding).generation], ['live', 2]);
    await assertOthersAlone();
  });

  await t.test('A8 nor does one that is stopped: it is ended at the deadline', async () => {
    await arm('preparing', 0, 'SIGSTOP');
    const adding = add('unheard');
    await untilStruck();
    const zygote = newestZygote();
    process.kill(zygote, 'SIGSTOP');
    assert.deepEqual([(await adding).state, (await adding).generation], ['live', 2]);
    await waitFor('the end of the stopped zygote', () => !processesNamed('ublk-zygote').includes(zygote));
    await assertOthersAlone();
  });

  await t.test('A8 one in JavaScript that has nothing to do gives its signs of life, again and again', async () => {
    const backend = { type: join(root, 'examples/ram-backend.js'), size: 2 ** 20 };
    await add('idle', { requestTimeout: IDLE_TIMEOUT, backend });
    // To have nothing to do for so long is what is tested: there is nothing to wait for, and one that hangs is replaced meanwhile.
    await setTimeout(3 * IDLE_TIMEOUT_MS);
    assert.equal((await served.device('idle')).recoveries, 0);
    await remove('idle');
  });

  await witness.end();
  const begun = performance.now();
  assert.equal(await served.terminate(), 0);
  assert.ok(performance.now() - begun < 20_000);
  await assertNothingLeft(served.runtimeDir);
});
