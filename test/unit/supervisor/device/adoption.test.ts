import t from 'tap';
import type { OpenBackend } from '../../../../backends/interface.js';
import type { FoundDevice } from '../../../../src/supervisor/ublk/kernel.js';
import { Device } from '../../../../src/supervisor/device/device.js';
import type { DeviceState } from '../../../../src/api/status.js';
import { Turns } from '../../../../src/timing/turns.js';
import { backend, deviceConfig, openBackend, faultsOf, leaked, outcomeOf, quiet, silent, type Rig } from './harness.js';
import { ModelClock } from './model-clock.js';
import { kernelVersions, type KernelVersion } from './model-device.js';
import type { ModelGeneration } from './model-generation.js';
import { ModelKernel, mortal, type Moment } from './model-kernel.js';

function newDevice(
  model: ModelKernel,
  kernel: ModelKernel,
  found?: FoundDevice,
  open: () => Promise<OpenBackend> = openBackend,
): Rig {
  const clock = new ModelClock();
  const states: DeviceState[] = [];
  const config = deviceConfig('ram0');
  const onChange = (state: DeviceState): void => {
    states.push(state);
  };
  return {
    model,
    clock,
    states,
    device: new Device({ config, openBackend: open, kernel, turns: new Turns(), log: silent, clock, onChange, found }),
  };
}

/** What a successor finds. */
function foundIn(model: ModelKernel): FoundDevice | undefined {
  const [device] = [...model.devices.values()];
  if (device === undefined) return undefined;
  const { id, state } = device;
  return { id, state, queues: 2, depth: 4, dataPath: 'user-copy', size: backend.size, blockSize: 4096, held: null };
}

/** A life with everything in it: start, a crash and its recovery, a stop. */
async function live(model: ModelKernel, kernel: ModelKernel): Promise<void> {
  const { device } = newDevice(model, kernel);
  void outcomeOf(device.start());
  await quiet();
  if (model.devices.size > 0) model.only.generations.at(-1)?.exit(0);
  await quiet();
  void outcomeOf(device.stop({ force: false }));
  await quiet();
}

/** How often each moment comes in that life. */
async function momentsOf(version: KernelVersion): Promise<[Moment, number][]> {
  const model = new ModelKernel(version);
  await live(model, model);
  const counts = new Map<Moment, number>();
  return model.calls.map((moment) => {
    counts.set(moment, (counts.get(moment) ?? 0) + 1);
    return [moment, counts.get(moment) ?? 0];
  });
}

/** A device that is served, and whose supervisor is dead. */
async function leftServed(version: KernelVersion): Promise<{ model: ModelKernel; generation: ModelGeneration }> {
  const model = new ModelKernel(version);
  const { kernel, kill } = mortal(model);
  await newDevice(model, kernel).device.start();
  kill();
  return { model, generation: model.generation };
}

for (const version of kernelVersions) {
  t.test(`whenever a supervisor is killed, the next one has the device live again, ${version}`, async (t) => {
    const moments = await momentsOf(version);
    t.ok(moments.length > 15, `that life has only ${moments.length} moments`);
    for (const [moment, nth] of moments) {
      for (const when of ['before', 'after'] as const) {
        const model = new ModelKernel(version);
        const { kernel, kill } = mortal(model);
        model.at(moment, nth, kill, when);
        await live(model, kernel);
        kill();
        model.heal();
        const before = { calls: model.calls.length, violations: model.violations.length };
        const successor = newDevice(model, model, foundIn(model));
        const started = outcomeOf(successor.device.start());
        await quiet();
        const name = `${when} ${moment} ${nth}`;
        t.strictSame(faultsOf(successor), [], name);
        t.equal(before.violations, 0, name);
        t.equal(started.result, 'done', `${name}: ${started.message}`);
        t.equal(successor.device.state, 'live', name);
        const stopped = outcomeOf(successor.device.stop({ force: false }));
        await quiet();
        t.equal(stopped.result, 'done', `${name}: ${stopped.message}`);
        t.notOk(leaked(successor), name);
      }
    }
  });

  t.test(`a device that is served stays as it is, ${version}`, async (t) => {
    const { model, generation } = await leftServed(version);
    const successor = newDevice(model, model, foundIn(model));
    await successor.device.start();
    t.equal(model.generation, generation);
    t.equal(generation.alive.size, 2);
    t.strictSame(successor.states, ['live']);
    t.equal(successor.device.status().generation, 1);
    generation.exit(1);
    await quiet();
    t.strictSame(successor.states, ['live', 'recovering', 'live']);
    t.strictSame(faultsOf(successor), []);
  });
}

t.test('of a device that the kernel does not tell of, nothing is taken for not there', async (t) => {
  for (const version of kernelVersions) {
    const { model, generation } = await leftServed(version);
    const successor = newDevice(model, model, foundIn(model));
    model.only.open = true;
    model.unreadable = true;
    model.failFrom('spawn', 2, 'ENOMEM');
    await t.rejects(successor.device.start(), { code: 'PARKED' });
    t.equal(generation.alive.size, 0, 'its processes were known, so another generation could take over');
    t.match(successor.device.status(), { state: 'degraded', path: '/dev/ublkb0' });
    await t.rejects(successor.device.stop({ force: false }), { code: 'IN_USE' });
    t.notOk(model.calls.includes('deleteDevice'));
    model.heal();
    await successor.device.recover();
    t.strictSame([successor.device.state, faultsOf(successor)], ['live', []]);
  }
});

t.test('what is served is adopted though its backend cannot be opened, and recovered when it can be', async (t) => {
  for (const version of kernelVersions) {
    const { model, generation } = await leftServed(version);
    let missing = true;
    const open = (): Promise<OpenBackend> =>
      missing ? Promise.reject(new Error('no such file')) : Promise.resolve(backend);
    const successor = newDevice(model, model, foundIn(model), open);
    const { device, clock } = successor;
    clock.held = true;
    await device.start();
    await quiet();
    t.match(device.status(), { state: 'live', size: backend.size, reason: /no such file/ });
    t.equal(generation.alive.size, 2);
    generation.exit(0);
    await quiet();
    t.match(device.status(), { state: 'degraded', reason: /no such file/, path: '/dev/ublkb0' });
    model.only.open = true;
    await t.rejects(device.stop({ force: false }), { code: 'IN_USE' });
    clock.wake();
    await quiet();
    t.equal(device.state, 'degraded');
    missing = false;
    clock.wake();
    await quiet();
    t.match(device.status(), { state: 'live', reason: null });
    t.strictSame(faultsOf(successor), []);
  }
});
