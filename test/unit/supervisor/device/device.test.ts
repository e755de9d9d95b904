import t from 'tap';
import type { OpenBackend } from '../../../../backends/interface.js';
import { SupervisorError } from '../../../../src/errors.js';
import { Device } from '../../../../src/supervisor/device/device.js';
import { Turns } from '../../../../src/timing/turns.js';
import { backend, deviceConfig, facts, faultsOf, liveRig, openBackend, quiet, silent } from './harness.js';
import { ModelClock } from './model-clock.js';
import { kernelVersions, type KernelVersion } from './model-device.js';
import { ModelKernel } from './model-kernel.js';

for (const version of kernelVersions) {
  t.test(`${version}: a device starts, survives its queue processes one after the other, and goes`, async (t) => {
    const made = await liveRig(version);
    const { model, clock, device, states } = made;
    t.match(device.status(), {
      name: 'ram0',
      id: 0,
      path: '/dev/ublkb0',
      state: 'live',
      reason: null,
      dataPath: 'user-copy',
      generation: 1,
      recoveries: 0,
      lastExit: null,
      lastPauseMs: null,
      queues: [{ pid: 100 }, { pid: 101 }],
    });
    clock.time += 5000;
    model.at('beginRecovery', 1, () => (clock.time += 70));
    model.generation.exit(1);
    await quiet();
    t.match(device.status(), {
      state: 'live',
      reason: null,
      generation: 2,
      recoveries: 1,
      lastExit: { queue: 1, pid: 101, signal: 'SIGKILL' },
      lastPauseMs: 70,
      queues: [{ pid: 200 }, { pid: 201 }],
    });
    t.strictSame(faultsOf(made), []);
    await device.stop({ force: false });
    t.match(device.status(), { id: null, path: null, state: 'gone', reason: null, queues: [] });
    t.match(device.status().lastExit, { pid: 101 }, 'an exit that was asked for is not told');
    t.strictSame(faultsOf(made), []);
    t.strictSame(states, ['starting', 'live', 'recovering', 'live', 'draining', 'stopping', 'gone']);
    t.strictSame(
      model.calls.filter((call) => !call.includes(':')),
      [
        ...['addDevice', 'setParameters', 'spawn', 'startDevice'],
        ...['beginRecovery', 'spawn', 'endRecovery'],
        ...['claim', 'stopDevice', 'deleteDevice'],
      ],
    );
  });
}

t.test('another device is served on whatever happens to this one', async (t) => {
  const model = new ModelKernel('6.16');
  const make = (name: string) =>
    new Device({
      config: deviceConfig(name),
      openBackend,
      kernel: model,
      turns: new Turns(),
      log: silent,
      clock: new ModelClock(),
    });
  const [victim, other] = [make('ram0'), make('ram1')];
  await Promise.all([victim.start(), other.start()]);
  const bystander = model.devices.get(1);
  const victims = () => model.devices.get(0)?.generations.at(-1);
  victims()?.exit(0);
  await quiet();
  t.equal(victim.status().recoveries, 1);
  model.at('endRecovery:fetching', 2, () => victims()?.exit(1));
  victims()?.exit(0);
  await quiet();
  t.equal(victim.state, 'failed');
  t.match(other.status(), { state: 'live', generation: 1, recoveries: 0 });
  t.match(bystander, { state: 'LIVE', generations: { length: 1 } });
  t.strictSame(model.violations, []);
});

t.test('devices that die at the same time recover a few at a time, unless they are to be stopped', async (t) => {
  const model = new ModelKernel('7.2');
  const turns = new Turns();
  const names = Array.from({ length: 10 }, (_none, index) => `ram${index}`);
  const devices = names.map((name) => {
    const config = deviceConfig(name);
    return new Device({ config, openBackend, kernel: model, turns, log: silent, clock: new ModelClock() });
  });
  await Promise.all(devices.map((device) => device.start()));
  const others = Array.from({ length: 8 }, () => turns.take());
  for (const { generations } of model.devices.values()) generations[0]?.exit(0);
  await quiet();
  const states = (): string[] => devices.map(({ state }) => state);
  t.strictSame(new Set(states()), new Set(['recovering']));
  const stopped = devices[9]?.stop({ force: true });
  await stopped;
  t.strictSame(new Set(states()), new Set(['recovering', 'gone']));
  others[0]?.end();
  await quiet();
  t.strictSame(
    states().slice(0, 9),
    Array.from({ length: 9 }, () => 'live'),
    'one after the other in one turn',
  );
  t.strictSame(model.violations, []);
});

t.test('the device is configured from its configuration and its backend', async (t) => {
  const make = async (config: object, other: object = {}, version: KernelVersion = '7.2') => {
    const device = new Device({
      config: { ...deviceConfig('ram0'), ...config },
      openBackend: () => Promise.resolve({ ...backend, ...other }),
      kernel: new ModelKernel(version),
      turns: new Turns(),
      log: silent,
    });
    await device.open();
    return device.status();
  };
  t.match(await make({}), { state: 'adding', size: 1 << 20, blockSize: 4096, dataPath: 'user-copy', backend: 'null' });
  t.match(await make({ dataPath: 'copy' }), { dataPath: 'copy' });
  const file = { dataPaths: ['zero-copy', 'copy'] };
  t.match(await make({}, file), { dataPath: 'zero-copy' });
  t.match(await make({}, file, '6.12'), { dataPath: 'copy' }, 'the best that the kernel has');
  t.match(await make({ dataPath: 'zero-copy' }, file, '6.12'), { dataPath: 'zero-copy' }, 'which ADD_DEV will refuse');
  await t.rejects(make({ dataPath: 'user-copy' }, file), {
    code: 'CONFIG',
    message: 'configuring device ram0 failed: backend null has no data path user-copy; use zero-copy or copy',
  });
  const appending = { facts: { ...facts, idempotentWrites: false } };
  await t.rejects(make({}, appending), { code: 'CONFIG', message: /fail-inflight/ });
  await make({ recovery: { ...deviceConfig('ram0').recovery, mode: 'fail-inflight' } }, appending);
  await t.rejects(make({}, { size: 4096 + 512 }), { code: 'CONFIG', message: /block size/ });
  await t.rejects(make({}, { size: 0 }), { code: 'CONFIG' });
});

t.test('a device whose data changed is not served until it is what it was', async (t) => {
  let refusal: SupervisorError | null = null;
  const check = (): Promise<void> => (refusal === null ? Promise.resolve() : Promise.reject(refusal));
  const model = new ModelKernel('7.2');
  const config = deviceConfig('ram0', { onGiveUp: 'stop' });
  const clock = new ModelClock();
  const openBackend = (): Promise<OpenBackend> => Promise.resolve({ ...backend, check });
  const device = new Device({ config, openBackend, kernel: model, turns: new Turns(), log: silent, clock });
  await device.start();
  clock.held = true;
  refusal = new SupervisorError('checking /disk failed: it shrank', { code: 'BACKEND' });
  model.generation.exit(0);
  await quiet();
  t.match(device.status(), { state: 'degraded', reason: 'checking /disk failed: it shrank' });
  t.notOk(model.calls.includes('beginRecovery'), 'the kernel was asked to recover it');
  await t.rejects(device.recover(), { code: 'BACKEND' });
  refusal = new SupervisorError('checking /disk failed: it is gone', { code: 'BACKEND' });
  clock.wake();
  await quiet();
  t.match(device.status(), { state: 'degraded', reason: 'checking /disk failed: it is gone' });
  refusal = null;
  clock.wake();
  await quiet();
  t.match(device.status(), { state: 'live', reason: null, generation: 2 }, 'by itself');
  t.strictSame(model.violations, []);
});
