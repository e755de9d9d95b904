import t from 'tap';
import { SupervisorError } from '../../../../src/errors.js';
import { faultsOf, liveRig, outcomeOf, quiet, rig } from './harness.js';
import { kernelVersions } from './model-device.js';

const forever = () => new Promise<never>(() => undefined);

t.test('queue processes that do not end by themselves after STOP_DEV get a moment, then are killed', async (t) => {
  const made = await liveRig('7.2');
  made.model.generation.killable = false;
  made.clock.held = true;
  const stop = outcomeOf(made.device.stop({ force: false }));
  await quiet();
  t.match(made, { clock: { sleeps: [1000] }, device: { state: 'stopping' } });
  t.equal(stop.result, 'pending');
  made.model.generation.killable = true;
  made.model.generation.exit(0, { code: 0, signal: null });
  await quiet();
  t.equal(stop.result, 'done');
  t.strictSame(faultsOf(made), []);
});

t.test('a stop is refused while somebody uses the device, and the device stays live', async (t) => {
  for (const version of kernelVersions) {
    const made = await liveRig(version);
    made.model.only.open = true;
    await t.rejects(made.device.stop({ force: false }), { code: 'IN_USE' });
    t.match(made.device.status(), { state: 'live', reason: /IN_USE/ });
    t.strictSame(faultsOf(made), []);
    made.model.at('stopDevice', 1, () => t.equal(made.device.status().reason, null, 'told no longer'));
    await made.device.stop({ force: true });
    t.strictSame([made.device.state, faultsOf(made)], ['gone', []]);
  }
});

t.test('opened between the check and TRY_STOP_DEV: refused by the kernel and served on', async (t) => {
  const made = await liveRig('7.2');
  const openAfterCheck = (nth: number): void =>
    made.model.at('claim', nth, () => (made.model.only.open = true), 'after');
  openAfterCheck(1);
  await t.rejects(made.device.stop({ force: false }), { code: 'EBUSY' });
  t.match(made.device.status(), { state: 'live', generation: 1 });
  made.model.only.open = false;
  openAfterCheck(2);
  made.model.at('stopDevice', 2, () => made.model.generation.exit(0));
  await t.rejects(made.device.stop({ force: false }), { code: 'EBUSY' });
  await quiet();
  t.match(made.device.status(), { state: 'live', recoveries: 1, reason: null, lastExit: { pid: 100 } });
  t.strictSame(faultsOf(made), []);
});

t.test('a refused stop lets the next one have its turn', async (t) => {
  const made = await liveRig('7.2');
  made.model.only.open = true;
  const first = outcomeOf(made.device.stop({ force: false }));
  const second = outcomeOf(made.device.stop({ force: true }));
  await quiet();
  t.strictSame([first.result, second.result, made.device.state], ['IN_USE', 'done', 'gone']);
  await made.device.stop({ force: false });
});

t.test('a hung device: STOP_DEV times out, the processes are killed and only then the device is deleted', async (t) => {
  const made = await liveRig('7.2');
  made.model.only.hung = true;
  made.clock.held = true;
  await made.device.stop({ force: false });
  t.strictSame([made.device.state, faultsOf(made)], ['gone', []]);
});

t.test('a stop that the kernel refuses for another reason goes on only when it is forced', async (t) => {
  const made = await liveRig('7.2');
  made.model.failFrom('stopDevice', 1, 'EIO');
  await t.rejects(made.device.stop({ force: false }), { code: 'EIO' });
  t.match(made.device.status(), { state: 'live', reason: /EIO/ });
  await made.device.stop({ force: true });
  t.strictSame([made.device.state, faultsOf(made)], ['gone', []]);
});

t.test('a degraded device in use is not stopped without force', async (t) => {
  const made = await liveRig('6.12', { auto: false });
  made.model.generation.exit(0);
  await quiet();
  made.model.only.open = true;
  await t.rejects(made.device.stop({ force: false }), { code: 'IN_USE' });
  t.equal(made.device.state, 'degraded');
  await made.device.stop({ force: true });
  t.strictSame([made.device.state, faultsOf(made)], ['gone', []]);
});

t.test('a stop of a device that cannot be recovered does not wait for more attempts', async (t) => {
  const made = await liveRig('7.2', { maxRestarts: 1000 });
  made.model.failFrom('spawn', 2, 'ENOMEM');
  made.clock.held = true;
  made.model.generation.exit(0);
  await quiet();
  await made.device.stop({ force: false });
  t.strictSame(made.model.calls.filter((call) => call === 'spawn').length, 3);
  t.strictSame([made.device.state, faultsOf(made)], ['gone', []]);
});

t.test('a start that waits for FETCHes is cancelled by a stop', async (t) => {
  const made = rig('6.12');
  const { model, device } = made;
  let waits: AbortSignal | undefined;
  let starts = 0;
  model.startDevice = (_granted, signal) => {
    waits = signal;
    starts += 1;
    return new Promise((_, reject) =>
      signal.addEventListener('abort', () => reject(new SupervisorError('cancelled', { code: 'ABORTED' }))),
    );
  };
  const start = outcomeOf(device.start());
  await quiet();
  t.strictSame([device.state, waits?.aborted], ['starting', false]);
  t.match(device.status(), { id: 0, path: null });
  const recover = outcomeOf(device.recover());
  await quiet();
  t.strictSame([waits?.aborted, starts], [false, 1], 'a recover joins the start');
  await device.stop({ force: false });
  t.strictSame([start.result, recover.result, waits?.aborted, faultsOf(made)], ['STOPPED', 'STOPPED', true, []]);
  await t.rejects(device.start(), { code: 'STOPPED' });
  await t.rejects(device.recover(), { code: 'STOPPED' });
});

t.test('START_DEV is not even sent when a stop came before it', async (t) => {
  const made = rig('7.2');
  let stop: Promise<void> | undefined;
  made.model.at('spawn', 1, () => {
    stop = made.device.stop({ force: false });
  });
  await t.rejects(made.device.start(), { code: 'STOPPED' });
  await stop;
  t.notOk(made.model.calls.includes('startDevice'));
  t.strictSame([made.device.state, faultsOf(made)], ['gone', []]);
});

t.test('recover is refused while a stop waits', async (t) => {
  const made = await liveRig('7.2');
  made.model.at('claim', 1, forever);
  void made.device.stop({ force: false });
  await t.rejects(made.device.recover(), { code: 'STOPPED' });
});

t.test('a device whose STOP_DEV timed out and whose processes cannot be killed is never reused', async (t) => {
  const made = await liveRig('7.2');
  const { generation } = made.model;
  generation.killable = false;
  made.model.only.hung = true;
  await t.rejects(made.device.stop({ force: false }), { code: 'STUCK' });
  t.match(made.device.status(), { id: 0, path: null, state: 'failed', reason: /uninterruptible/ });
  generation.thaw();
  await made.device.recover();
  t.strictSame([made.device.state, faultsOf(made)], ['live', []]);
});

t.test('a stop that meets a death of the queue processes goes on after the recovery, a few times', async (t) => {
  const interrupted = new SupervisorError('writing back /dev/ublkb0 failed: cancelled', { code: 'WRITE_BACK' });
  for (const version of kernelVersions) {
    for (const deaths of [1, 3, 4]) {
      const made = await liveRig(version, { maxRestarts: 10 });
      for (let nth = 1; nth <= deaths; nth += 1) {
        made.model.at('stopDevice', nth, () => {
          made.model.generation.exit(1);
          throw interrupted;
        });
      }
      const stop = outcomeOf(made.device.stop({ force: false }));
      await quiet();
      const expected = deaths <= 3 ? ['done', 'gone'] : ['WRITE_BACK', 'live'];
      t.strictSame([stop.result, made.device.state, faultsOf(made)], [...expected, []], `${version}, ${deaths}`);
      t.equal(made.device.status().recoveries, deaths);
    }
    const made = await liveRig(version);
    made.model.at('stopDevice', 1, () => Promise.reject(interrupted));
    await t.rejects(made.device.stop({ force: false }), { code: 'WRITE_BACK' }, 'nobody died');
    t.strictSame([made.device.state, faultsOf(made)], ['live', []]);
  }
});
