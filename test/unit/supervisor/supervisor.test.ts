import { setTimeout } from 'node:timers/promises';
import t from 'tap';
import type { OpenBackend } from '../../../backends/interface.js';
import type { DeviceConfig } from '../../../src/config/types.js';
import { SupervisorError } from '../../../src/errors.js';
import { Supervisor } from '../../../src/supervisor/supervisor.js';
import { backend, deviceConfig, outcomeOf, quiet } from './device/harness.js';
import { ModelClock } from './device/model-clock.js';
import type { KernelVersion } from './device/model-device.js';
import { ModelKernel } from './device/model-kernel.js';

interface Rig {
  readonly model: ModelKernel;
  readonly supervisor: Supervisor;
  readonly clock: ModelClock;
  /** `open ram0`, `close ram0`, `remove ram0`, `stopped`, in the order in which they happened. */
  readonly events: string[];
  readonly logged: string[];
}

interface Options {
  readonly open?: (name: string) => Promise<void>;
  readonly close?: (name: string) => Promise<void>;
  readonly facts?: Partial<OpenBackend>;
  readonly assertReplaceable?: () => Promise<void>;
  readonly version?: KernelVersion;
}

function rig({ open, close, facts, assertReplaceable, version = '7.2' }: Options = {}): Rig {
  const model = new ModelKernel(version);
  const clock = new ModelClock();
  const events: string[] = [];
  const logged: string[] = [];
  const supervisor = new Supervisor({
    kernel: model,
    clock,
    version: '1.2.3',
    kernelRelease: '7.2.12',
    log: {
      info: () => undefined,
      warn: () => undefined,
      error: (_fields, message) => logged.push(message),
    },
    parseDevice: (input) => {
      if (typeof input !== 'string') throw new SupervisorError('device: not valid', { code: 'CONFIG' });
      return named(input);
    },
    stores: {
      async open(_options, { device }) {
        await open?.(device);
        events.push(`open ${device}`);
        return {
          ...backend,
          ...facts,
          close: async () => {
            events.push(`close ${device}`);
            await close?.(device);
          },
          remove: () => Promise.resolve(void events.push(`remove ${device}`)),
        };
      },
      letGo: () => undefined,
    },
    startSuccessor: () =>
      Promise.resolve({
        nursery: 2,
        accept: () => void events.push('accept'),
        discard: () => void events.push('discard'),
      }),
    assertReplaceable,
    onEnd: () => events.push(String(supervisor.end)),
  });
  return { model, supervisor, clock, events, logged };
}

/** `ram0` lets the kernel choose the id, `ram0=7` wants 7. */
function named(text: string): DeviceConfig {
  const [name = '', id] = text.split('=');
  return { ...deviceConfig(name), id: id === undefined ? undefined : Number(id) };
}

const config = (...devices: string[]) => ({ devices: devices.map(named) });
const ids = ({ supervisor }: Rig) => supervisor.status().devices.map(({ name, id }) => `${name}=${String(id)}`);
const states = ({ supervisor }: Rig) => supervisor.status().devices.map(({ name, state }) => `${name} ${state}`);
const keep = { force: false, removeData: false };

function use({ model }: Rig, name: string, open = true): void {
  for (const device of model.devices.values()) if (device.name === name) device.open = open;
}

t.test('starts every device of the configuration, wanted ids first, else in its order', async (t) => {
  const made = rig({ open: (name) => (name === 'a' ? quiet() : Promise.resolve()) });
  t.strictSame(await made.supervisor.start(config('a', 'b=1', 'c', 'd=0')), []);
  t.strictSame(ids(made), ['a=2', 'b=1', 'c=3', 'd=0']);
  t.match(made.supervisor.status().supervisor, { pid: process.pid, version: '1.2.3', kernel: '7.2.12' });
  t.strictSame(made.model.violations, []);
});

t.test('devices start in parallel once they have their ids', async (t) => {
  const made = rig();
  const { promise, release } = gate();
  made.model.at('startDevice', 1, () => promise);
  const start = outcomeOf(made.supervisor.start(config('a', 'b')));
  await quiet();
  t.strictSame(states(made), ['a starting', 'b live']);
  t.equal(start.result, 'pending');
  release();
  await quiet();
  t.strictSame([start.result, ...states(made)], ['done', 'a live', 'b live']);
});

t.test('devices that fail are reported and the others served', async (t) => {
  const made = rig({
    open: (name) => (name === 'b' ? Promise.reject(new Error('no such file')) : Promise.resolve()),
  });
  made.model.fail('setParameters', 2, 'EINVAL');
  made.clock.held = true;
  const failures = await made.supervisor.start(config('a', 'b', 'c', 'a', 'd'));
  t.match(failures.map(({ name, error }) => `${name} ${error.code}`).sort(), ['a EXISTS', 'b INTERNAL', 'c EINVAL']);
  t.strictSame(states(made), ['a live', 'b failed', 'c failed', 'd live']);
  t.match(made.logged.sort(), [/adding device a failed/, /device b is failed: .*no such file/, /device c is failed/]);
  t.match(await made.supervisor.recover('c'), { name: 'c', state: 'live' });
});

t.test('startAll leaves nothing of any device when one fails, but data that is older', async (t) => {
  const fresh = rig({ facts: { created: true } });
  fresh.model.fail('setParameters', 2, 'EINVAL');
  await t.rejects(fresh.supervisor.startAll(config('a', 'b')), { code: 'EINVAL', device: 'b', message: /EINVAL/ });
  t.strictSame([states(fresh), fresh.model.devices.size], [[], 0]);
  t.strictSame(fresh.events.sort(), ['close a', 'close b', 'open a', 'open b', 'remove a', 'remove b']);

  const old = rig();
  old.model.fail('setParameters', 1, 'EINVAL');
  old.model.fail('setParameters', 2, 'EPERM');
  await t.rejects(old.supervisor.startAll(config('a', 'b')), { message: /EINVAL.*\n.*EPERM/ });
  t.strictSame(old.events.sort(), ['close a', 'close b', 'open a', 'open b']);
  await old.supervisor.startAll(config('a', 'b'));
  t.strictSame(states(old), ['a live', 'b live']);
});

t.test('add resolves with a device that is live', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a'));
  t.match(await made.supervisor.add('b=9'), { name: 'b', id: 9, path: '/dev/ublkb9', state: 'live' });
  t.strictSame(ids(made), ['a=0', 'b=9']);
});

t.test('add refuses what is not valid, a name or an id that is taken, and says which', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a', 'b=5'));
  await t.rejects(made.supervisor.add({}), { code: 'CONFIG' });
  await t.rejects(made.supervisor.add('a'), { code: 'EXISTS', device: 'a' });
  await t.rejects(made.supervisor.add('c=0'), { code: 'EXISTS', message: /id 0 is that of device a/ });
  await t.rejects(made.supervisor.add('c=5'), { code: 'EXISTS', message: /device b/ });
  t.strictSame(made.events, ['open b', 'open a'], 'no backend was opened in vain');
});

t.test('add refuses a name that the kernel would confuse with another', async (t) => {
  const made = rig();
  await made.supervisor.start(config('confusing'));
  const message = /the kernel could not tell it from device confusing; choose another name/;
  await t.rejects(made.supervisor.add('confused'), { code: 'EXISTS', message });
});

t.test('of two adds of one name at once the second is refused', async (t) => {
  const made = rig({ open: () => quiet() });
  const adds = ['a', 'a', 'b=4', 'c=4'].map((name) => outcomeOf(made.supervisor.add(name)));
  await quiet();
  await quiet();
  t.strictSame(
    adds.map(({ result }) => result),
    ['done', 'EXISTS', 'done', 'EXISTS'],
  );
});

t.test('an add that fails leaves nothing but the data', async (t) => {
  const made = rig();
  made.model.fail('spawn', 1, 'EPERM');
  await t.rejects(made.supervisor.add('a'), { code: 'EPERM' });
  t.strictSame([made.model.devices.size, made.model.pages.size, ...states(made)], [0, 0]);
  t.strictSame(made.events, ['open a', 'close a']);
  t.match(await made.supervisor.add('a'), { state: 'live' }, 'the name is free again');
});

t.test('an add that fails removes data that it made itself', async (t) => {
  const made = rig({ facts: { created: true } });
  made.model.fail('spawn', 1, 'EPERM');
  await t.rejects(made.supervisor.add('a'), { code: 'EPERM' });
  t.strictSame(made.events, ['open a', 'close a', 'remove a']);
});

t.test('an add that fails and cannot be removed stays to be seen', async (t) => {
  const made = rig();
  made.model.fail('spawn', 1, 'EPERM');
  made.model.failFrom('deleteDevice', 1, 'TIMEOUT');
  await t.rejects(made.supervisor.add('a'), { code: 'EPERM' });
  t.strictSame([...states(made), ...made.events], ['a failed', 'open a']);
  made.model.heal();
  await made.supervisor.remove('a', keep);
  t.strictSame([made.model.devices.size, ...states(made)], [0]);
});

t.test('a backend that does not fit is closed again', async (t) => {
  const made = rig({ facts: { size: 1000 } });
  made.clock.held = true;
  await t.rejects(made.supervisor.add('a'), { code: 'CONFIG' });
  t.strictSame([made.events, states(made)], [['open a', 'close a'], []]);
});

t.test('remove closes the backend when the device is gone, and removes its data only when asked to', async (t) => {
  const made = rig({
    close: (name) => {
      t.notOk([...made.model.devices.values()].some((device) => device.name === name));
      return Promise.resolve();
    },
  });
  await made.supervisor.start(config('a', 'b'));
  await made.supervisor.remove('a', keep);
  t.strictSame(ids(made), ['b=1']);
  await made.supervisor.remove('b', { force: false, removeData: true });
  t.strictSame(made.events, ['open a', 'open b', 'close a', 'close b', 'remove b']);
});

t.test('remove is refused while somebody uses the device', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a'));
  use(made, 'a');
  await t.rejects(made.supervisor.remove('a', keep), { code: 'IN_USE' });
  t.strictSame([...states(made), ...made.events], ['a live', 'open a']);
  await made.supervisor.remove('a', { force: true, removeData: false });
  t.strictSame(states(made), []);
});

t.test('removing at once by several closes once, and the data go when one of them wants it', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a'));
  await Promise.all([keep, { force: false, removeData: true }, keep].map((how) => made.supervisor.remove('a', how)));
  t.strictSame(made.events, ['open a', 'close a', 'remove a']);
});

t.test('a backend that cannot be closed is told, and the name is free', async (t) => {
  const made = rig({ close: () => Promise.reject(new Error('no')) });
  await made.supervisor.start(config('a'));
  await t.rejects(made.supervisor.remove('a', keep), { code: 'INTERNAL', message: /closing the backend of device a/ });
  t.strictSame([states(made), made.logged.length], [[], 1]);
});

t.test('a name that is not known', async (t) => {
  const { supervisor } = rig();
  await t.rejects(supervisor.remove('a', keep), { code: 'NOT_FOUND', device: 'a' });
  await t.rejects(supervisor.recover('a'), { code: 'NOT_FOUND', device: 'a' });
});

t.test('stop ends every device, then tells, once', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a', 'b'));
  await made.supervisor.stop({ force: false });
  await made.supervisor.stop({ force: false });
  t.strictSame(made.events, ['open a', 'open b', 'close a', 'close b', 'stopped']);
  t.strictSame([made.model.devices.size, states(made)], [0, []]);
  await t.rejects(made.supervisor.add('c'), { code: 'STOPPING' });
});

t.test('stop touches no device while one of them is in use, and the supervisor goes on', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a', 'b'));
  use(made, 'b');
  await t.rejects(made.supervisor.stop({ force: false }), { code: 'IN_USE' });
  t.strictSame(states(made), ['a live', 'b live']);
  t.notOk(made.model.calls.includes('stopDevice'));
  await made.supervisor.add('c');
  await made.supervisor.stop({ force: true });
  t.equal(made.events.at(-1), 'stopped');
});

t.test('nobody can begin to use a device while all are being stopped', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a', 'b'));
  const claimed: number[][] = [];
  for (const nth of [1, 2]) {
    made.model.at('stopDevice', nth, () => claimed.push([...made.model.claims].flatMap(({ ids }) => ids)));
  }
  await made.supervisor.stop({ force: false });
  t.strictSame(claimed, [
    [0, 1],
    [0, 1],
  ]);
  t.equal(made.model.claims.size, 0);
});

t.test('a second stop with force ends what the first could not', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a', 'b'));
  made.model.at('stopDevice', 1, () => use(made, 'a'));
  const { promise, release } = gate();
  made.model.at('stopDevice', 2, () => promise);
  const first = outcomeOf(made.supervisor.stop({ force: false }));
  await quiet();
  const second = outcomeOf(made.supervisor.stop({ force: true }));
  release();
  await quiet();
  t.strictSame([first.result, second.result, states(made)], ['EBUSY', 'done', []]);
  t.strictSame(made.events.filter((event) => event === 'stopped').length, 1);
});

t.test('a forced stop ends the supervisor though a device stays, and says so', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a', 'b'));
  made.model.failFrom('deleteDevice', 2, 'TIMEOUT');
  await t.rejects(made.supervisor.stop({ force: true }), { code: 'TIMEOUT' });
  t.strictSame([states(made), made.events.at(-1)], [['b failed'], 'stopped']);
});

t.test('a stop that is not forced and leaves a device does not end the supervisor', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a'));
  made.model.failFrom('deleteDevice', 1, 'TIMEOUT');
  await t.rejects(made.supervisor.stop({ force: false }), { code: 'TIMEOUT' });
  t.strictSame([states(made), made.events], [['a failed'], ['open a']]);
});

t.test('a stop while devices are being started, or their backends opened', async (t) => {
  for (const turns of [0, 1]) {
    const made = rig({ open: () => quiet() });
    made.model.at('addDevice', 1, () => quiet());
    const start = made.supervisor.start(config('a', 'b'));
    for (let turn = 0; turn < turns; turn += 1) await quiet();
    await made.supervisor.stop({ force: false });
    t.match(
      (await start).map(({ error }) => error.code),
      ['STOPPED', 'STOPPED'],
    );
    t.strictSame(made.events.sort(), ['close a', 'close b', 'open a', 'open b', 'stopped']);
    t.strictSame([made.model.devices.size, states(made), made.model.violations], [0, [], []]);
  }
});

t.test('what a resize made room for is cut off once nothing larger serves', async (t) => {
  const cuts: (readonly [at: number, serves: number, size: number])[] = [];
  const ofSize = (size: number): OpenBackend => ({
    ...backend,
    size,
    resize: (wanted) => Promise.resolve(ofSize(wanted)),
    trim: () => Promise.resolve(void cuts.push([size, made.model.only.serves, made.model.only.size])),
  });
  const { size } = backend;
  const made = rig({ facts: ofSize(size) });
  const { model, supervisor } = made;
  await supervisor.start({ devices: [{ ...named('a'), backend: { type: 'ram', size } }] });
  model.fail('updateSize', 1, 'EIO');
  await t.rejects(supervisor.resize('a', { size: 2 * size, force: false }), { code: 'EIO' });
  t.strictSame(cuts.splice(0), [[size, size, size]]);
  await supervisor.resize('a', { size: size / 2, force: false });
  t.strictSame(cuts.splice(0), [[size / 2, size / 2, size / 2]]);
  t.strictSame([states(made), model.violations], [['a live'], []]);
});

t.test('a stop does not fail for a backend that could not be opened', async (t) => {
  const made = rig({ open: () => quiet().then(() => Promise.reject(new Error('no'))) });
  const add = outcomeOf(made.supervisor.add('a'));
  await made.supervisor.stop({ force: false });
  await quiet();
  t.strictSame([add.result, made.events], ['STOPPED', ['stopped']]);
});

t.test('a device whose backend cannot be opened is there, and starts by itself when it can be', async (t) => {
  let missing = true;
  const made = rig({ open: () => (missing ? Promise.reject(new Error('no such file')) : Promise.resolve()) });
  const { supervisor, clock } = made;
  clock.held = true;
  const failures = await supervisor.start(config('a', 'b'));
  t.match(
    failures.map(({ name }) => name),
    ['a', 'b'],
  );
  t.match(supervisor.status().devices, [{ name: 'a', state: 'failed', id: null, reason: /no such file/ }, {}]);
  clock.wake();
  await quiet();
  await t.rejects(supervisor.recover('a'), { message: /no such file/ });
  t.strictSame(states(made), ['a failed', 'b failed']);
  t.strictSame(made.logged.length, 3, 'each said once, and what was asked for again');
  missing = false;
  t.match(await supervisor.recover('b'), { state: 'live', reason: null });
  t.strictSame(states(made), ['a failed', 'b live'], 'recover tries at once');
  clock.wake();
  await quiet();
  t.match(supervisor.status().devices, [
    { state: 'live', reason: null },
    { state: 'live', reason: null },
  ]);
  t.strictSame(made.events, ['open b', 'open a']);
  missing = true;
  await supervisor.stop({ force: false });
  t.strictSame([states(made), made.model.violations], [[], []]);
});

t.test('a device whose backend cannot be opened can be removed', async (t) => {
  const made = rig({ open: () => Promise.reject(new Error('no such file')) });
  made.clock.held = true;
  await made.supervisor.start(config('a'));
  await made.supervisor.remove('a', { force: false, removeData: true });
  t.strictSame([states(made), made.events], [[], []]);
});

t.test('a lock is given a moment to go', async (t) => {
  let attempts = 0;
  const open = (): Promise<void> => {
    attempts += 1;
    return attempts < 4
      ? Promise.reject(new SupervisorError('opening it failed: locked', { code: 'IN_USE' }))
      : Promise.resolve();
  };
  const made = rig({ open });
  t.match(await made.supervisor.add('a'), { state: 'live' });
  t.strictSame(made.clock.sleeps, [50, 50, 50]);
});

t.test('a backend that hangs keeps no other device from starting, nor anybody from stopping', async (t) => {
  const { promise, release } = gate();
  const made = rig({ open: (name) => (name === 'hung' ? promise : Promise.resolve()) });
  const start = outcomeOf(made.supervisor.start(config('hung', 'b')));
  // Only the order of ids is waited for, and that not for long.
  while (!states(made).includes('b live')) await setTimeout(10);
  t.strictSame([start.result, ...states(made)], ['pending', 'hung adding', 'b live']);
  await made.supervisor.stop({ force: true });
  await quiet();
  t.strictSame([start.result, states(made), made.events], ['done', [], ['open b', 'close b', 'stopped']]);
  release();
  await quiet();
  t.strictSame(made.events.slice(3), ['open hung', 'close hung'], 'too late');
});

t.test('recover brings a parked device back, and rejects when it does not come', async (t) => {
  const made = rig();
  await made.supervisor.start(config('a'));
  made.model.failFrom('spawn', 2, 'ENOMEM');
  made.model.generation.exit(0);
  await quiet();
  t.strictSame(states(made), ['a degraded']);
  await t.rejects(made.supervisor.recover('a'), { code: 'PARKED' });
  made.model.heal();
  t.match(await made.supervisor.recover('a'), { state: 'live', recoveries: 1 });
});

function gate(): { readonly promise: Promise<void>; readonly release: () => void } {
  let release = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    release = resolve;
  });
  return {
    promise,
    release: () => release(),
  };
}

t.test('an upgrade hands every device over that is served, and ends at the first that cannot be', async (t) => {
  const made = rig();
  const { model, supervisor, events } = made;
  await supervisor.start(config('ram0', 'ram1', 'ram2'));
  const generations = (): number[] => supervisor.status().devices.map(({ generation }) => generation);
  const nurseries = (): (number | null)[] => [...model.devices.values()].map(({ nursery }) => nursery);
  await supervisor.upgrade();
  t.strictSame(
    [generations(), nurseries()],
    [
      [2, 2, 2],
      [2, 2, 2],
    ],
  );
  model.fail('spawn', 8, 'ENOMEM');
  await t.rejects(supervisor.upgrade(), {
    code: 'ENOMEM',
    device: 'ram1',
    message: /ram1 and the devices after it are/,
  });
  t.strictSame(
    [generations(), nurseries()],
    [
      [3, 4, 2],
      [2, 2, 2],
    ],
  );
  t.strictSame(states(made), ['ram0 live', 'ram1 live', 'ram2 live']);
  t.strictSame(events.slice(3), ['accept', 'discard']);
});

t.test('an upgrade is refused where there is no way back', async (t) => {
  const { supervisor, model } = rig({ version: '6.12' });
  await supervisor.start(config('ram0'));
  const asked = model.calls.length;
  await t.rejects(supervisor.upgrade(), { code: 'EOPNOTSUPP', message: /before Linux 6.16/ });
  t.equal(model.calls.length, asked);
});

t.test('a supervisor that is to be replaced takes no more orders, and leaves its devices alone', async (t) => {
  let refused = true;
  const assertReplaceable = (): Promise<void> =>
    refused
      ? Promise.reject(new SupervisorError('not with this configuration', { code: 'REFUSED' }))
      : Promise.resolve();
  const { supervisor, events, model } = rig({ assertReplaceable });
  await supervisor.start(config('ram0'));
  const asked = model.calls.length;
  await t.rejects(supervisor.upgradeSelf(), { code: 'REFUSED' });
  t.equal(supervisor.end, null);
  refused = false;
  await supervisor.upgradeSelf();
  t.strictSame([supervisor.end, events.at(-1)], ['replaced', 'replaced']);
  await t.rejects(supervisor.add('ram1'), { code: 'STOPPING' });
  t.equal(model.calls.length, asked);
  await t.rejects(rig().supervisor.upgradeSelf(), { code: 'REFUSED', message: /inside another program/ });
});

t.test('what is asked or told of one device costs nothing of the others', async (t) => {
  const made = rig();
  const { model, supervisor } = made;
  await supervisor.start(config('a', 'b', 'c'));
  let read = 0;
  const queueStatus = model.queueStatus.bind(model);
  model.queueStatus = (...asked) => {
    read += 1;
    return queueStatus(...asked);
  };
  t.match(supervisor.deviceStatus('b'), { name: 'b', state: 'live' });
  t.equal(supervisor.deviceStatus('d'), null);
  t.equal(read, 1);
  await supervisor.restart('c');
  await supervisor.add('d');
  await supervisor.recover('d');
  t.equal(read, 4, 'an answer each, whatever changed');
  const statuses = supervisor.deviceStatuses()[Symbol.iterator]();
  t.match(statuses.next(), { value: { name: 'a' } });
  t.equal(read, 5);
  await supervisor.remove('b', { force: false, removeData: false });
  t.match([...statuses], [{ name: 'c' }, { name: 'd' }], 'what has gone meanwhile is left out');
});
