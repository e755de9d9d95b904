import fc from 'fast-check';
import t from 'tap';
import type { DeviceConfig } from '../../../src/config/types.js';
import { planOf, type Running } from '../../../src/supervisor/reload-plan.js';
import { deviceConfig } from './device/harness.js';

const SIZE = 1 << 20;

function running(configured: DeviceConfig | null, now: Partial<Running> = {}): Running {
  return { configured, name: configured?.name ?? 'by-hand', state: 'live', size: SIZE, ...now };
}

const a = deviceConfig('a');
const b = deviceConfig('b');
const js: DeviceConfig = {
  ...deviceConfig('js'),
  backend: { type: 'module', path: '/m.js', directory: '/', options: { key: [1], size: 5 } },
};
const withOptions = (options: Record<string, unknown>): DeviceConfig => ({
  ...js,
  backend: { type: 'module', path: '/m.js', directory: '/', options },
});
const recovery = (change: Partial<DeviceConfig['recovery']>): DeviceConfig => ({
  ...a,
  recovery: { ...a.recovery, ...change },
});
const ofSize = (size: number): DeviceConfig => ({ ...a, backend: { type: 'null', size } });

t.test('adds, removes, keeps', (t) => {
  t.match(planOf([running(a), running(b)], [b, deviceConfig('c')]), [
    { device: 'b', action: 'keep' },
    { device: 'c', action: 'add' },
    { device: 'a', action: 'remove' },
  ]);
  t.strictSame(planOf([running(null)], []), [], 'what was added by hand stays');
  t.match(planOf([running(null, { name: 'a' })], [a]), [{ action: 'refuse', reason: /added by hand/ }]);
  t.end();
});

t.test('each field can change, or is refused by name', (t) => {
  const cases: [DeviceConfig, DeviceConfig, string, string[]][] = [
    [a, { ...a, requestTimeoutMs: 1 }, 'change', ['requestTimeout']],
    [a, recovery({ auto: false, maxRestarts: 1 }), 'change', ['recovery.auto', 'recovery.maxRestarts']],
    [a, recovery({ windowMs: 5, onGiveUp: 'stop' }), 'change', ['recovery.onGiveUp', 'recovery.window']],
    [js, withOptions({ key: [1], size: 6 }), 'change', ['backend.size']],
    [js, withOptions({ key: [2], size: 5 }), 'change', ['backend.key']],
    [js, withOptions({ size: 5, more: true }), 'change', ['backend.key', 'backend.more']],
    [a, { ...a, id: 3 }, 'refuse', ['id']],
    [a, { ...a, queues: 3, depth: 8 }, 'refuse', ['queues', 'depth']],
    [a, { ...a, blockSize: 512 }, 'refuse', ['blockSize']],
    [a, { ...a, readOnly: true }, 'refuse', ['readOnly']],
    [a, { ...a, dataPath: 'copy' }, 'refuse', ['dataPath']],
    [a, recovery({ mode: 'fail-io' }), 'refuse', ['recovery.mode']],
    [a, { ...a, backend: { type: 'ram', size: SIZE } }, 'refuse', ['backend.type']],
    [a, ofSize(2 * SIZE), 'refuse', ['backend.size']],
    [
      js,
      { ...js, backend: { type: 'module', path: '/n.js', directory: '/', options: {} } },
      'refuse',
      ['backend.type'],
    ],
    [a, { ...a, queues: 3, requestTimeoutMs: 1 }, 'refuse', ['queues', 'requestTimeout']],
  ];
  for (const [now, wanted, action, changes] of cases) {
    const [entry] = planOf([running(now)], [wanted]);
    t.equal(entry?.action, action, changes.join());
    for (const path of changes) t.ok(entry?.changes.includes(path), path);
    if (action === 'refuse') t.match(entry?.reason, changes[0]);
  }
  t.end();
});

t.test('a device that was resized is not what its configuration says', (t) => {
  const resized = running(a, { size: 2 * SIZE });
  t.match(planOf([resized], [a]), [{ action: 'keep' }], 'the file was not edited');
  t.match(planOf([resized], [ofSize(2 * SIZE)]), [{ action: 'keep' }], 'the file was edited to match');
  t.match(planOf([resized], [ofSize(3 * SIZE)]), [{ action: 'refuse', reason: /resize/ }]);
  t.end();
});

t.test('a device that is not served cannot be changed', (t) => {
  const changed = { ...a, requestTimeoutMs: 1 };
  const actionIn = (state: Running['state']) => planOf([running(a, { state })], [changed])[0]?.action;
  t.strictSame((['live', 'degraded', 'failed', 'stopping'] as const).map(actionIn), [
    'change',
    'change',
    'refuse',
    'refuse',
  ]);
  t.end();
});

t.test('every device has one entry, and what a plan leads to needs no plan', (t) => {
  const name = fc.constantFrom('a', 'b', 'c', 'd');
  const device = fc
    .record({ name, requestTimeoutMs: fc.constantFrom(1, 2), maxRestarts: fc.constantFrom(1, 2) })
    .map(({ name: one, requestTimeoutMs, maxRestarts }) => ({
      ...deviceConfig(one, { maxRestarts }),
      requestTimeoutMs,
    }));
  const config = fc.uniqueArray(device, { selector: ({ name: one }) => one });
  fc.assert(
    fc.property(config, config, (now, wanted) => {
      const plan = planOf(
        now.map((one) => running(one)),
        wanted,
      );
      const names = plan.map(({ device: one }) => one);
      t.equal(new Set(names).size, names.length);
      const left = new Set(now.map(({ name: one }) => one));
      for (const { device: one, action } of plan) {
        if (action === 'remove') left.delete(one);
        if (action === 'add') left.add(one);
      }
      t.strictSame([...left].sort(), wanted.map(({ name: one }) => one).sort());
      t.ok(
        planOf(
          wanted.map((one) => running(one)),
          wanted,
        ).every(({ action }) => action === 'keep'),
      );
    }),
    { numRuns: 50 },
  );
  t.end();
});
