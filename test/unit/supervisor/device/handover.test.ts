import t from 'tap';
import { SupervisorError } from '../../../../src/errors.js';
import type { DeviceConfig } from '../../../../src/config/types.js';
import type { Served } from '../../../../src/supervisor/device/hand-over.js';
import { backend, deviceConfig, facts, faultsOf, liveRig, outcomeOf, quiet, type Rig } from './harness.js';
import { kernelVersions } from './model-device.js';
import type { Moment } from './model-kernel.js';

const gently = { force: false };
const config = deviceConfig('ram0');
const same: Served = { config, backend, nursery: null };
const sized = (size: number): Served => ({ ...same, backend: { ...backend, size } });
const SIZE = backend.size;

const crash = ({ model }: Rig): void => model.generation.exit(0);

for (const version of kernelVersions) {
  t.test(`${version}: a hand-over is a new generation, no recovery and no restart`, async (t) => {
    const made = await liveRig(version, { maxRestarts: 0 });
    for (let generation = 2; generation <= 20; generation += 1) {
      await made.device.handOver(same, gently);
      t.match(made.device.status(), { state: 'live', generation, recoveries: 0, reason: null });
      t.strictSame(faultsOf(made), []);
    }
    t.notOk(made.model.calls.includes('updateSize'));
  });

  t.test(`${version}: whatever fails, the old is served again and the hand-over rejected`, async (t) => {
    const moments: readonly Moment[] = ['beginRecovery', 'spawn', 'endRecovery', 'endRecovery:preparing'];
    for (const moment of moments) {
      const made = await liveRig(version, { maxRestarts: 0 });
      made.model.fail(moment, moment === 'spawn' ? 2 : 1, 'ENOMEM');
      const changed: DeviceConfig = { ...config, requestTimeoutMs: 5 };
      await t.rejects(made.device.handOver({ ...same, config: changed }, gently), { code: 'ENOMEM' }, moment);
      t.match(made.device.status(), { state: 'live' }, moment);
      t.strictSame(faultsOf(made), [], moment);
      await made.device.handOver(same, gently);
      t.strictSame([made.device.state, faultsOf(made)], ['live', []], `${moment}, again`);
    }
  });

  t.test(`${version}: a new generation that dies before it serves gives way to the old code`, async (t) => {
    const made = await liveRig(version, { maxRestarts: 0 });
    made.model.at('endRecovery:preparing', 1, () => crash(made));
    await t.rejects(made.device.handOver(same, gently), { code: 'EXITED' });
    t.match(made.device.status(), { state: 'live', generation: 3 });
    t.strictSame(faultsOf(made), []);
  });
}

t.test('what does not finish in time is killed', async (t) => {
  const made = await liveRig('7.2');
  made.model.generation.stubborn = true;
  await made.device.handOver(same, gently);
  t.match(made.device.status(), { state: 'live', generation: 2 });
  t.strictSame(faultsOf(made), []);
});

t.test('a backend whose data is gone is refused before anything is touched', async (t) => {
  const made = await liveRig('7.2');
  const { model, device } = made;
  let gone = false;
  const check = (): Promise<void> => (gone ? Promise.reject(new Error('gone')) : Promise.resolve());
  await device.handOver({ ...same, backend: { ...backend, check } }, gently);
  gone = true;
  const asked = model.calls.length;
  await t.rejects(device.handOver(same, gently), { code: 'INTERNAL' });
  t.match(device.status(), { state: 'live', generation: 2 });
  t.strictSame([model.calls.length, faultsOf(made)], [asked, []]);
});

t.test('a queue process that cannot be killed leaves the device degraded', async (t) => {
  const made = await liveRig('7.2');
  made.model.generation.killable = false;
  await t.rejects(made.device.handOver(same, gently), { code: 'STUCK' });
  t.match(made.device.status(), { state: 'degraded', reason: /uninterruptible/ });
  made.model.generation.thaw();
  await made.device.recover();
  t.strictSame([made.device.state, faultsOf(made)], ['live', []]);
});

t.test('what the kernel was told cannot change', async (t) => {
  const { device, model } = await liveRig('7.2');
  const asked = model.calls.length;
  const other = { ...backend, facts: { ...facts, discard: false, readOnly: true } };
  await t.rejects(device.handOver({ ...same, backend: other }, gently), {
    code: 'REFUSED',
    message: /discard would be false and is true, readOnly would be true and is false, which cannot change/,
  });
  await t.rejects(device.handOver({ ...same, config: { ...config, queues: 3 } }, gently), /queues would be 3 and is 2/);
  t.equal(model.calls.length, asked);
});

t.test('events in the middle', async (t) => {
  const hold = (made: Rig, moment: Moment, nth = 1): (() => void) => {
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    made.model.at(moment, nth, () => held);
    return release;
  };
  const stopped = await liveRig('7.2');
  const go = hold(stopped, 'endRecovery');
  const handOver = outcomeOf(stopped.device.handOver(same, gently));
  await quiet();
  t.equal(stopped.device.state, 'handingOver');
  const stop = outcomeOf(stopped.device.stop(gently));
  const second = outcomeOf(stopped.device.handOver(same, gently));
  go();
  await quiet();
  t.strictSame([handOver.result, stop.result, second.result], ['done', 'done', 'STOPPED']);
  t.strictSame([stopped.device.state, faultsOf(stopped)], ['gone', []]);
  await t.rejects(stopped.device.handOver(same, gently), { code: 'STOPPED' });

  const crashed = await liveRig('7.2');
  const recover = hold(crashed, 'endRecovery');
  crash(crashed);
  await quiet();
  const waits = outcomeOf(crashed.device.handOver(same, gently));
  t.equal(crashed.device.state, 'recovering');
  recover();
  await quiet();
  t.equal(waits.result, 'done', 'a hand-over waits for the recovery');
  t.match(crashed.device.status(), { state: 'live', generation: 3, recoveries: 1 });

  const degraded = await liveRig('7.2', { auto: false });
  crash(degraded);
  await quiet();
  t.equal(degraded.device.state, 'degraded');
  await degraded.device.handOver(same, gently);
  t.match(degraded.device.status(), { state: 'live', generation: 2, recoveries: 0 });
  t.strictSame(faultsOf(degraded), []);
});

for (const version of ['6.16', '7.2'] as const) {
  t.test(`${version}: sizes`, async (t) => {
    const made = await liveRig(version);
    const { device, model } = made;
    const is = (size: number, why: string): void => {
      const { size: known, serves } = model.only;
      t.strictSame([device.status().size, known, serves, faultsOf(made)], [size, size, size, []], why);
    };
    await device.handOver(sized(2 * SIZE), gently);
    is(2 * SIZE, 'grown');
    model.only.open = true;
    await t.rejects(device.handOver(sized(SIZE), gently), { code: 'IN_USE' });
    is(2 * SIZE, 'not shrunk while it is open');
    t.equal(device.status().generation, 2);
    await device.handOver(sized(SIZE), { force: true });
    is(SIZE, 'forced');
    model.only.open = false;
    await device.handOver(sized(SIZE / 2), gently);
    is(SIZE / 2, 'shrunk');
    crash(made);
    await quiet();
    is(SIZE / 2, 'recovered');
    for (const size of [SIZE, SIZE / 4]) {
      made.model.heal();
      const nth = model.calls.filter((call) => call === 'updateSize').length + 1;
      model.fail('updateSize', nth, 'EIO');
      await t.rejects(device.handOver(sized(size), gently), { code: 'EIO' });
      is(SIZE / 2, `the kernel refused ${size}`);
    }
    model.fail('spawn', model.calls.filter((call) => call === 'spawn').length + 1, 'ENOMEM');
    await t.rejects(device.handOver(sized(SIZE / 4), gently), { code: 'ENOMEM' });
    is(SIZE / 2, 'shrunk in the kernel, then grown again');
  });
}

t.test('a hand-over that meets a death of the queue processes is made after the recovery, a few times', async (t) => {
  for (const version of ['6.16', '7.2'] as const) {
    for (const [size, deaths] of [
      [SIZE / 2, 1],
      [2 * SIZE, 1],
      [2 * SIZE, 3],
      [2 * SIZE, 4],
    ] as const) {
      const made = await liveRig(version, { maxRestarts: 10 });
      for (let nth = 1; nth <= deaths; nth += 1) {
        made.model.at('updateSize', nth, () => {
          crash(made);
          throw new SupervisorError('UPDATE_SIZE failed: cancelled', { code: 'ABORTED' });
        });
      }
      const handOver = outcomeOf(made.device.handOver(sized(size), gently));
      await quiet();
      const expected = deaths <= 3 ? ['done', size] : ['ABORTED', SIZE];
      const { state, size: now } = made.device.status();
      t.strictSame([handOver.result, now, state, faultsOf(made)], [...expected, 'live', []], `${version} ${deaths}`);
      t.equal(made.model.only.size, now);
    }
  }
});
