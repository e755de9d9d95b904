import t from 'tap';
import { faultsOf, liveRig, outcomeOf, quiet } from './harness.js';

t.test('crashes with a second of service between them are answered at once', async (t) => {
  const made = await liveRig('7.2');
  made.model.fail('spawn', 2, 'ENOMEM');
  for (let crash = 0; crash < 4; crash += 1) {
    made.clock.time += 1000;
    made.model.generation.exit(0);
    await quiet();
  }
  t.strictSame(made.clock.sleeps, [10], 'but for the attempt that failed');
  t.equal(made.device.status().recoveries, 4);
});

t.test('how a queue process ended is told as far as it is known', async (t) => {
  const ends = [
    [{ code: null, signal: 'SIGSEGV' }, /queue process 0 \(pid 100\) was killed by SIGSEGV/],
    [{ code: 70, signal: null }, /queue process 0 \(pid 100\) exited with code 70/],
    [{ code: null, signal: null }, /queue process 0 \(pid 100\) ended;/],
  ] as const;
  for (const [how, reason] of ends) {
    const { model, device } = await liveRig('7.2', { auto: false });
    model.generation.exit(0, how);
    await quiet();
    t.match(device.status().reason, reason);
  }
});

t.test('how far a generation fetched is of no interest once it served', async (t) => {
  const made = await liveRig('6.12');
  made.model.generation.exit(0);
  await quiet();
  made.model.generation.reached = 'fetching';
  made.model.generation.exit(0);
  await quiet();
  t.match(made.device.status(), { state: 'live', recoveries: 2 });
});

t.test('the pause is counted from the exit of the generation that served', async (t) => {
  const made = await liveRig('7.2');
  made.model.at('endRecovery:fetched', 1, () => {
    made.clock.time += 30;
    made.model.generation.exit(0);
  });
  made.model.at('endRecovery:fetched', 2, () => (made.clock.time += 40));
  made.model.generation.exit(0);
  await quiet();
  t.equal(made.device.status().lastPauseMs, 30 + 10 + 40);
});

t.test('a crash loop is slowed down and ends in degraded, from where recover begins anew', async (t) => {
  const made = await liveRig('7.2', { maxRestarts: 4 });
  const { model, clock, device } = made;
  for (let nth = 1; nth <= 9; nth += 1) {
    model.at('endRecovery:preparing', nth, () => model.generation.exit(0));
  }
  clock.time += 5000;
  model.generation.exit(0);
  await quiet();
  t.strictSame(clock.sleeps, [10, 20, 40]);
  t.match(device.status(), {
    state: 'degraded',
    reason: /killed by SIGKILL; the limit of 4 restarts in 60 s is reached/,
  });
  t.strictSame(faultsOf(made), []);
  const recover = outcomeOf(device.recover());
  await quiet();
  t.equal(recover.result, 'PARKED', 'one attempt by hand and four by the policy died, too');
  t.strictSame(clock.sleeps, [10, 20, 40, 10, 20, 40]);
  await device.recover();
  t.match(device.status(), { state: 'live', reason: null });
  t.strictSame(faultsOf(made), []);
});

t.test('onGiveUp stop removes the device, which recover makes anew', async (t) => {
  const made = await liveRig('7.2', { maxRestarts: 0, onGiveUp: 'stop' });
  made.model.only.open = true;
  made.model.generation.exit(0);
  await quiet();
  t.match(made.device.status(), { id: null, state: 'failed', reason: /limit of 0 restarts/ });
  t.equal(made.model.devices.size, 0);
  t.strictSame(faultsOf(made), []);
  await made.device.recover();
  t.strictSame([made.device.state, faultsOf(made)], ['live', []]);
});

t.test('auto: false kills the siblings and waits for recover, each time', async (t) => {
  const made = await liveRig('6.16', { auto: false, onGiveUp: 'stop' });
  for (let round = 1; round <= 2; round += 1) {
    await made.device.recover();
    made.model.generation.exit(0);
    await quiet();
    t.match(made.device.status(), { state: 'degraded', reason: /automatic recovery is off/, recoveries: round - 1 });
    t.strictSame(faultsOf(made), []);
    await made.device.recover();
    t.match(made.device.status(), { state: 'live', recoveries: round });
  }
});

t.test(
  'a queue process in uninterruptible sleep: degraded, nothing asked of the kernel, recover tries again',
  async (t) => {
    const made = await liveRig('6.16');
    const { model, device } = made;
    const { generation } = model;
    generation.killable = false;
    const asked = model.calls.length;
    generation.exit(0);
    await quiet();
    t.match(device.status(), { state: 'degraded', reason: /uninterruptible/ });
    await t.rejects(device.recover(), { code: 'STUCK' });
    await t.rejects(device.stop({ force: true }), { code: 'STUCK' });
    t.match(device.status(), { state: 'degraded', generation: 1 });
    t.strictSame(model.calls.slice(asked), []);
    generation.killable = true;
    await device.recover();
    t.strictSame([device.state, faultsOf(made)], ['live', []]);
  },
);

t.test('A10 it recovers by itself when the sleep ends', async (t) => {
  const made = await liveRig('6.16');
  const { model, device } = made;
  const { generation } = model;
  generation.killable = false;
  generation.exit(0);
  await quiet();
  t.match(device.status(), { state: 'degraded', generation: 1 });
  generation.thaw();
  await quiet();
  t.match(device.status(), { state: 'live', generation: 2, recoveries: 1 });
  t.strictSame(faultsOf(made), []);
});

t.test('so it does after stops that were refused', async (t) => {
  const made = await liveRig('6.16');
  const { model, device } = made;
  const { generation } = model;
  generation.killable = false;
  generation.exit(0);
  await quiet();
  await t.rejects(device.stop({ force: true }), { code: 'STUCK' });
  model.only.open = true;
  await t.rejects(device.stop({ force: false }), { code: 'IN_USE' });
  t.equal(device.state, 'degraded');
  generation.thaw();
  await quiet();
  t.match(device.status(), { state: 'live', generation: 2, recoveries: 1 });
  t.strictSame(faultsOf(made), []);
});

t.test('a backend that does not load is loaded again also after a stop that was refused', async (t) => {
  const made = await liveRig('7.2');
  const { model, device, clock } = made;
  clock.held = true;
  model.fail('endRecovery', 1, 'UNLOADABLE');
  model.generation.exit(0);
  await quiet();
  t.equal(device.state, 'degraded');
  model.only.open = true;
  await t.rejects(device.stop({ force: false }), { code: 'IN_USE' });
  t.equal(device.state, 'degraded');
  clock.wake();
  await quiet();
  t.match(device.status(), { state: 'live', recoveries: 1 });
  t.strictSame(faultsOf(made), []);
});

t.test('what a store keeps from being recovered is tried again until the store answers', async (t) => {
  for (const [step, code] of [
    ['beginRecovery', 'EBUSY'],
    ['beginRecovery', 'TIMEOUT'],
  ] as const) {
    const { model, device, clock } = await liveRig('7.2', { maxRestarts: 2 });
    model.failFrom(step, 1, code);
    model.generation.exit(0);
    await quiet();
    t.equal(device.state, 'degraded', `${step} ${code}`);
    t.ok(clock.sleeps.filter((ms) => ms === 1000).length > 10, 'beyond the limit of restarts');
    model.heal();
    clock.wake();
    await quiet();
    t.match(device.status(), { state: 'live', reason: null, recoveries: 1 });
  }
});

t.test('a back-off ends early by recover and by stop', async (t) => {
  const crashOnce = async () => {
    const made = await liveRig('7.2');
    made.clock.held = true;
    made.model.fail('spawn', 2, 'ENOMEM');
    made.model.generation.exit(0);
    await quiet();
    t.match(made, { clock: { sleeps: [10] }, device: { state: 'recovering' } });
    return made;
  };
  const recovered = await crashOnce();
  await recovered.device.recover();
  t.strictSame(faultsOf(recovered), []);
  const stopped = await crashOnce();
  await stopped.device.stop({ force: false });
  t.strictSame([stopped.device.state, faultsOf(stopped)], ['gone', []]);
});
