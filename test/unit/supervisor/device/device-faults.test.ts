import t from 'tap';
import { DeviceFaults } from '../../../../src/supervisor/device/device-faults.js';
import type { CompiledFault, FaultInSlot } from '../../../../src/native/addon/fault-area.js';
import type { WrittenFaultRule } from '../../../../src/faults/rule.js';

/** Which rules a device has, and in which slot of the shared page each is. */

const device = { name: 'disk', size: 2 ** 20, blockSize: 4096 };

function make(rules: readonly WrittenFaultRule[] | undefined = []): {
  faults: DeviceFaults;
  page: Map<number, CompiledFault>;
} {
  const page = new Map<number, CompiledFault>();
  const faults = new DeviceFaults({
    rules,
    device: () => device,
    counted: () => [...page].map(([slot, { text }]): FaultInSlot => ({ slot, text, matches: 2, hits: 1 })),
    write: (slot, rule) => {
      if (rule === null) page.delete(slot);
      else page.set(slot, rule);
    },
  });
  return { faults, page };
}

t.test('rules get an id and a slot, which is free again when they go', (t) => {
  const { faults, page } = make();
  t.equal(faults.add({ do: 'drop' }).id, 'fault-1');
  t.equal(faults.add({ id: 'mine', do: 'hang' }).id, 'mine');
  t.strictSame([...page.keys()], [0, 1]);
  faults.remove('fault-1');
  faults.add({ id: 'last', do: { error: 'EIO' } });
  t.strictSame([...page.keys()], [1, 0]);
  t.ok((page.get(0)?.sequence ?? 0) > (page.get(1)?.sequence ?? 0), 'rules are tried in the order in which they came');
  t.match(faults.status(), [{ id: 'mine' }, { id: 'last', hits: 1, matches: 2, active: true }]);
  faults.clear();
  t.equal(page.size, 0);
  t.throws(() => faults.remove('mine'), { code: 'NOT_FOUND' });
  t.end();
});

t.test('what is refused changes nothing', (t) => {
  const { faults, page } = make([{ id: 'first', do: 'hang' }]);
  t.throws(() => faults.add({ id: 'first', do: 'drop' }), { code: 'CONFIG', message: /there is a rule of that id/ });
  t.throws(() => faults.add({ do: 'drop', range: '2MiB+1' }), { message: /begins behind the end/ });
  t.throws(() => faults.add({ do: 'drop', afterHitOf: 'none' }), { message: /there is no rule none before it/ });
  t.throws(() => faults.add({ do: 'what' }), { code: 'CONFIG' });
  t.match(faults.status(), [{ id: 'first' }]);
  t.equal(page.size, 0);
  const none = new DeviceFaults({ rules: undefined, device: () => device, counted: () => [], write: () => undefined });
  t.throws(() => none.add({ do: 'drop' }), { code: 'REFUSED', message: /its configuration allows none/ });
  t.equal(none.slots(), null);
  t.end();
});

t.test('the next supervisor has the same rules in the same slots and order, and what is no rule is left out', (t) => {
  const before = make();
  before.faults.add({ id: 'gone', do: 'drop' });
  before.faults.add({ id: 'a', do: 'hang' });
  before.faults.remove('gone');
  before.faults.add({ id: 'b', do: 'drop', afterHitOf: 'a', for: '1s' });
  const found = [...before.page].map(([slot, { text }]) => ({ slot, text, matches: 0, hits: 0 }));
  const { faults, page } = make([{ id: 'configured', do: 'drop' }]);
  faults.restore([...found, { slot: 9, text: '{"rule":{"do":"what"}}', matches: 0, hits: 0 }]);
  t.strictSame(faults.slots(), before.faults.slots());
  t.strictSame(
    [...page].map(([slot, { text }]) => [slot, text]),
    found.map(({ slot, text }) => [slot, text]),
    'each is written again',
  );
  t.end();
});

t.test('no rule keeps a device from being adopted or recovered', (t) => {
  const before = make();
  before.faults.add({ id: 'a', do: 'hang' });
  before.faults.add({ id: 'b', do: 'drop', afterHitOf: 'a' });
  before.faults.add({ id: 'far', do: 'drop', range: '512KiB+4KiB' });
  before.faults.remove('a');
  const found = [...before.page].map(([slot, { text }]) => ({ slot, text, matches: 0, hits: 0 }));
  const twice = found.map((one) => ({ ...one, slot: one.slot + 10 }));
  const { faults, page } = make();
  faults.restore([...found, ...twice]);
  t.match(faults.status(), [{ id: 'b' }, { id: 'far' }]);
  t.strictSame([...page.keys()], [1, 2]);
  const smaller = new DeviceFaults({
    rules: [{ id: 'far', do: { badBlocks: { at: ['512KiB+4KiB'] } }, range: '512KiB+4KiB' }],
    device: () => ({ ...device, size: 4096 }),
    counted: () => [],
    write: () => undefined,
  });
  t.equal(smaller.slots()?.length, 1);
  t.throws(() => smaller.assertFit({ ...device, size: 4096 }), { code: 'CONFIG' });
  t.end();
});

t.test('a rule that waits for one that is gone waits for ever', (t) => {
  const { faults } = make();
  faults.add({ id: 'a', do: 'hang' });
  faults.add({ id: 'b', do: 'drop', afterHitOf: 'a' });
  t.equal(faults.slots()?.[1]?.rule.active, true);
  faults.remove('a');
  t.equal(faults.slots()?.[0]?.rule.active, false);
  t.end();
});
