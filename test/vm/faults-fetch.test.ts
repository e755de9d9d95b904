import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arm, installFaultPoints, untilFetched, untilStruck } from './fault-points.js';
import { RunningSupervisor, assertNothingLeft, isLinux, run, waitFor } from './harness.js';
import { Witness } from './witness.js';

const ram = { type: 'ram', size: '16MiB' };

test('A6 a replacement that dies between the FETCHes of its queues', async () => {
  await installFaultPoints();
  const served = await RunningSupervisor.start([
    { name: 'witness', backend: ram },
    { name: 'twin', queues: 2, backend: ram },
  ]);
  const { path } = await served.device('witness');
  assert.ok(path);
  const witness = await Witness.of(path);
  const twin = await served.device('twin');
  const pids = async (): Promise<number[]> => (await served.device('twin')).queues.map(({ pid }) => pid ?? 0);

  await arm('fetching', 1, 'SIGSTOP');
  process.kill((await pids())[0] ?? assert.fail('no process'), 'SIGKILL');
  await untilStruck();
  const reading = run('dd', [`if=${twin.path ?? ''}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct']);
  const [fetched, stopped] = await pids();
  assert.ok(fetched && stopped);
  await untilFetched(fetched);
  process.kill(stopped, 'SIGKILL');

  // Kernels before 7.0 cannot recover such a device; up to 6.14 trying to is a NULL dereference.
  const recoverable = isLinux(7, 0);
  if (recoverable) {
    const { generation } = await served.untilLive('twin', 1);
    assert.equal(generation, 3);
    assert.equal((await reading).code, 0);
  } else {
    const lost = await waitFor('the device being given up', async () => {
      const device = await served.device('twin');
      return device.state === 'failed' && device;
    });
    assert.match(lost.reason ?? '', /died while it was fetching, after which this kernel cannot recover the device/);
    assert.equal((await reading).code, 1, 'a read that nobody answered succeeded');
    assert.equal((await served.api('POST', '/v1/devices/twin/recover')).status, 200);
    assert.equal((await served.device('twin')).state, 'live');
  }
  const another = await served.api('POST', '/v1/devices', { name: 'another', queues: 2, backend: ram });
  assert.equal(another.status, 201, 'the control plane does not add devices any more');
  await witness.end();
  const { recoveries, lastExit } = await served.device('witness');
  assert.deepEqual([recoveries, lastExit], [0, null]);
  const begun = performance.now();
  assert.equal(await served.terminate(), 0);
  assert.ok(performance.now() - begun < 20_000);
  // What waited for a device that is given up fails, and the kernel logs that.
  await assertNothingLeft(served.runtimeDir, recoverable ? undefined : /I\/O error, dev ublkb1,/);
});
