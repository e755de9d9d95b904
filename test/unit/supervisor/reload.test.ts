import t from 'tap';
import type { OpenBackend } from '../../../backends/interface.js';
import type { Config, DeviceConfig } from '../../../src/config/types.js';
import { SupervisorError } from '../../../src/errors.js';
import type { LeftDevice } from '../../../src/supervisor/adoption.js';
import type { FoundDevice } from '../../../src/supervisor/ublk/kernel.js';
import { Stores } from '../../../src/supervisor/stores/stores.js';
import { Supervisor } from '../../../src/supervisor/supervisor.js';
import { backend, deviceConfig, facts, silent } from './device/harness.js';
import { ModelClock } from './device/model-clock.js';
import { ModelKernel, mortal } from './device/model-kernel.js';

interface Rig {
  readonly model: ModelKernel;
  readonly supervisor: Supervisor;
  /** What the configuration file says. */
  file: Config | null;
  readonly opened: string[];
}

const rig = (...devices: DeviceConfig[]): Promise<Rig> => rigOn(new ModelKernel('7.2'), devices, []);

function openModule(path: string, options: Readonly<Record<string, unknown>>, onRenewed: () => void): OpenBackend {
  const { size, discard } = options;
  if (size === 'broken') throw new SupervisorError('it does not load', { code: 'BACKEND' });
  return {
    ...backend,
    dataPaths: ['copy'],
    facts: { ...facts, discard: discard !== false },
    module: { path, options, directory: '/', lower: [] },
    size: Number(size),
    renew: async (wanted) => {
      onRenewed();
      return Promise.resolve(openModule(path, wanted.options, onRenewed));
    },
  };
}

async function rigOn(model: ModelKernel, devices: DeviceConfig[], left: readonly LeftDevice[]): Promise<Rig> {
  const opened: string[] = [];
  const made: Rig = { model, opened, file: { devices }, supervisor: undefined as never };
  const supervisor = new Supervisor({
    kernel: model,
    clock: new ModelClock(),
    version: '1.2.3',
    kernelRelease: '7.2.12',
    log: silent,
    parseDevice: (input) => deviceConfig(String(input)),
    loadConfig: () =>
      made.file === null
        ? Promise.reject(new SupervisorError('reading configuration failed', { code: 'CONFIG' }))
        : Promise.resolve(made.file),
    findLeftDevices: () => Promise.resolve(left),
    stores: {
      open(options, { device }) {
        opened.push(device);
        if (options.type === 'null') return Promise.resolve({ ...backend, size: options.size, created: true });
        if (options.type !== 'module') throw new TypeError(`no backend ${options.type}`);
        return Promise.resolve(openModule(options.path, options.options, () => opened.push(device)));
      },
      letGo: () => undefined,
    },
  });
  await supervisor.start({ devices });
  return Object.assign(made, { supervisor });
}

const js = (options: Record<string, unknown>): DeviceConfig => ({
  ...deviceConfig('js'),
  backend: { type: 'module', path: '/m.js', directory: '/', options: { size: 8192, ...options } },
});
const [a, b] = [deviceConfig('a'), deviceConfig('b')];
const patient = (config: DeviceConfig): DeviceConfig => ({ ...config, requestTimeoutMs: 7 });
const now = ({ supervisor }: Rig) =>
  supervisor.status().devices.map(({ name, state, generation }) => `${name} ${state} ${generation}`);
const reallyReload = { dryRun: false };

t.test('C2 a reload makes the devices those of the file, and a second one changes nothing', async (t) => {
  const made = await rig(a, b, js({}));
  await made.supervisor.add('by-hand');
  made.file = { devices: [patient(b), js({ letter: 'x' }), deviceConfig('c')] };
  const plan = await made.supervisor.reload({ dryRun: true });
  t.match(plan, [{ action: 'change' }, { action: 'change' }, { action: 'add' }, { action: 'remove' }]);
  t.strictSame(now(made), ['a live 1', 'b live 1', 'js live 1', 'by-hand live 1']);
  t.strictSame(await made.supervisor.reload(reallyReload), plan);
  t.strictSame(now(made), ['b live 2', 'js live 2', 'by-hand live 1', 'c live 1']);
  t.match(await made.supervisor.reload(reallyReload), [{ action: 'keep' }, { action: 'keep' }, { action: 'keep' }]);
  t.strictSame(now(made), ['b live 2', 'js live 2', 'by-hand live 1', 'c live 1']);
  t.strictSame(made.model.violations, []);
});

t.test('C2 one thing that cannot be done, and nothing is', async (t) => {
  const made = await rig(a, b, js({}));
  const before = now(made);
  const refusals: [DeviceConfig[] | null, string, RegExp][] = [
    [null, 'CONFIG', /reading configuration/],
    [[patient(a), { ...b, queues: 7 }, js({})], 'REFUSED', /queues cannot change.*nothing was changed/s],
    [[patient(a), b, js({ size: 'broken' })], 'REFUSED', /it does not load/],
    [[patient(a), b, js({ size: 4096 })], 'REFUSED', /announces 4096 bytes, not 8192/],
    [[patient(a), b, js({ discard: false })], 'REFUSED', /discard would be false and is true/],
    [[patient(a), b, js({}), { ...js({ size: 'broken' }), name: 'new' }], 'REFUSED', /it does not load/],
    [
      [patient(a), b, js({}), deviceConfig('c'), { ...deviceConfig('d'), id: 0 }],
      'REFUSED',
      /id 0 is that of device a/,
    ],
  ];
  for (const [devices, code, message] of refusals) {
    made.file = devices === null ? null : { devices };
    await t.rejects(made.supervisor.reload(reallyReload), { code, message });
    t.strictSame(now(made), before);
  }
  for (const device of made.model.devices.values()) device.open = true;
  made.file = { devices: [b] };
  await t.rejects(made.supervisor.reload(reallyReload), { code: 'REFUSED', message: /IN_USE/ });
  t.strictSame(now(made), before);
  t.equal(made.model.claims.size, 0);
  t.strictSame(made.model.violations, []);
});

t.test('C2 a device that is to go is claimed until it is gone, and not when nothing is done after all', async (t) => {
  const made = await rig(a, b, js({}));
  made.file = { devices: [js({ size: 'broken' })] };
  await t.rejects(made.supervisor.reload(reallyReload), { code: 'REFUSED' });
  t.equal(made.model.claims.size, 0);
  const claimed: number[][] = [];
  for (const nth of [1, 2]) {
    made.model.at('stopDevice', nth, () => claimed.push([...made.model.claims].flatMap(({ ids }) => ids)));
  }
  made.file = { devices: [js({})] };
  await made.supervisor.reload(reallyReload);
  t.strictSame(claimed, [
    [0, 1],
    [0, 1],
  ]);
  t.strictSame([made.model.claims.size, now(made)], [0, ['js live 1']]);
});

t.test('C2 what changed while there was no supervisor is a change to its successor', async (t) => {
  const model = new ModelKernel('7.2');
  const { kernel, kill } = mortal(model);
  await rigOn(kernel, [a], []);
  kill();
  const size = 2 * backend.size;
  const shape = { queues: 2, depth: 4, dataPath: 'user-copy', size, blockSize: 4096 } as const;
  const found: FoundDevice = { id: 0, state: 'LIVE', ...shape, held: null };
  const made = await rigOn(model, [patient(a)], [{ config: a, announced: null, found }]);
  t.strictSame(now(made), ['a live 1']);
  t.strictSame(await made.supervisor.reload(reallyReload), [
    { device: 'a', action: 'change', changes: ['requestTimeout'], reason: null },
  ]);
  t.match(await made.supervisor.reload(reallyReload), [{ action: 'keep' }]);
  t.match(made.supervisor.status().devices, [{ size, generation: 2 }]);
  t.strictSame(model.violations, []);
});

t.test('E2 resize asks the store first, and what fails leaves the size as it was', async (t) => {
  const made = await rig(a, js({}));
  const size = (): number | undefined => made.supervisor.status().devices[0]?.size;
  const resize = (wanted: number, force = false) => made.supervisor.resize('a', { size: wanted, force });
  await t.rejects(resize(8192), { code: 'REFUSED', message: /cannot change its size/ });
  await t.rejects(made.supervisor.resize('js', { size: 4096, force: false }), /announces 8192 bytes, not 4096/);
  await t.rejects(made.supervisor.resize('a', { size: 4097, force: false }), /not a multiple of its block size 4096/);
  t.equal(size(), backend.size);
  t.strictSame(made.model.violations, []);
});

t.test('E3 restart opens a module again and nothing else', async (t) => {
  const made = await rig(a, js({}));
  t.match(await made.supervisor.restart('a'), { generation: 2 });
  t.match(await made.supervisor.restart('js'), { generation: 2 });
  t.strictSame(made.opened, ['a', 'js', 'js']);
  await t.rejects(made.supervisor.restart('none'), { code: 'NOT_FOUND' });
  t.strictSame([...made.supervisor.modules()], [['js', '/m.js']]);
});

t.test('E2 what is asked of a device at once is done in turn', async (t) => {
  const made = await rig(js({}));
  const both = [made.supervisor.restart('js'), made.supervisor.restart('js'), made.supervisor.restart('js')];
  t.match(await Promise.all(both), [{ state: 'live' }, { state: 'live' }, { generation: 4 }]);
  t.strictSame(made.model.violations, []);
});

t.test('without a configuration there is nothing to reload', async (t) => {
  const { supervisor } = await rig();
  const options = { kernel: new ModelKernel('7.2'), stores: new Stores(), log: silent, version: '', kernelRelease: '' };
  const bare = new Supervisor({ ...options, parseDevice: () => a });
  await t.rejects(bare.reload(reallyReload), { code: 'REFUSED', message: /has no configuration file/ });
  t.strictSame(await supervisor.reload(reallyReload), []);
});
