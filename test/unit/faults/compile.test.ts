import t from 'tap';
import { assertFits, compileFault, type FaultPlace } from '../../../src/faults/compile.js';
import { faultRule, faultRules, type FaultRule } from '../../../src/faults/rule.js';
import { FaultAction, UNLIMITED } from '../../../src/native/addon/fault-area.js';

const device = { name: 'disk', size: 2 ** 30, blockSize: 4096 };
const place: FaultPlace = { sequence: 3, madeNs: 1000n, active: true, afterHitOf: 0 };
const compile = (rule: Omit<FaultRule, 'id'> & { readonly id?: string }) =>
  compileFault({ id: 'rule', ...rule }, device, place);

t.test('what a rule leaves out is everything, always', (t) => {
  const rule = compile({ do: { error: 'ENOSPC' } });
  t.match(rule, { action: FaultAction.error, start: 0n, end: UNLIMITED, every: 1n, after: 0n, count: 0n });
  t.match(rule, { probability: UNLIMITED, fromNs: 0n, untilNs: UNLIMITED, operations: 0b11111, sequence: 3 });
  t.equal(rule.arguments[0], 28n);
  t.strictSame(JSON.parse(rule.text), { rule: { id: 'rule', do: { error: 'ENOSPC' } }, sequence: 3, madeNs: '1000' });
  t.end();
});

t.test('places, times and chances are what the queues reckon with', (t) => {
  const rule = compile({ do: 'drop', on: ['fua'], range: '1MiB+4KiB', probability: '1:4', from: '2us', for: '1ms' });
  t.match(rule, { start: 1048576n, end: 1052672n, probability: 2n ** 62n, fromNs: 3000n, untilNs: 1003000n });
  t.equal(rule.operations, 0b100000);
  t.equal(compile({ do: { misdirect: { by: '-4KiB' } } }).arguments[0], 2n ** 64n - 4096n);
  t.strictSame([...compile({ do: { delay: { samples: ['1ms', '2us'] } } }).samplesUs], [1000, 2]);
  const bad = compile({ do: { badBlocks: { at: ['12KiB+1', '0+8KiB', '4KiB'], failingWrites: 2 } } });
  t.strictSame([...bad.badBlocks], [0n, 1n, 3n]);
  t.equal(bad.writesUntilGood, 3);
  t.end();
});

t.test('rules of one seed choose each for itself, and the same each time', (t) => {
  const keyOf = (id: string, seed: number): bigint => compile({ id, do: 'drop', seed }).key;
  t.equal(keyOf('a', 1), keyOf('a', 1));
  t.not(keyOf('a', 1), keyOf('b', 1));
  t.not(keyOf('a', 1), keyOf('a', 2));
  t.end();
});

t.test('what does not fit the device is refused by name', (t) => {
  const refused = (rule: Omit<FaultRule, 'id'>, message: RegExp): void => {
    t.throws(
      () => {
        assertFits({ id: 'rule', ...rule }, device);
        compile(rule);
      },
      { code: 'CONFIG', message },
    );
  };
  refused({ do: 'drop', range: '1GiB+1MiB' }, /fault rule rule of device disk: 1GiB\+1MiB begins behind the end/);
  refused({ do: { badBlocks: { at: ['0+512MiB'] } } }, /room for 4096 bad blocks/);
  refused({ do: { delay: { samples: Array<string>(256).fill('1000000us') } } }, /too long/);
  t.end();
});

t.test('a rule that contradicts itself is refused where it does', (t) => {
  const refused = (rule: object, message: RegExp): void => {
    const { error } = faultRule.safeParse(rule);
    t.match(error?.message, message, JSON.stringify(rule));
  };
  refused({ do: 'drop', on: ['read'] }, /drop makes no sense for read/);
  refused({ do: 'drop', on: ['fua', 'write'] }, /a rule of its own for each/);
  refused({ do: { torn: { sectors: 1 } }, on: ['discard'] }, /torn makes no sense for discard/);
  refused({ do: 'hang', per: 'sector' }, /expected a probability beside it/);
  refused({ do: 'hang', on: ['flush'], range: '0+1MiB' }, /a flush has no place/);
  refused({ do: { delay: { uniform: ['2ms', '1ms'] } } }, /the shorter delay first/);
  refused({ do: 'hang', probability: 2 }, /above 0 and up to 1/);
  refused({ do: 'hang', probability: 0 }, /above 0 and up to 1/);
  refused({ do: { error: 'EWHAT' } }, /expected the name of an errno/);
  refused({ do: 'hang', range: '1GiB+' }, /expected OFFSET\+LENGTH/);
  refused({ do: { misdirect: { by: 100 } } }, /expected a multiple of 512 bytes other than 0/);
  refused({ do: 'hang', count: 0 }, /expected a whole number from 1/);
  t.end();
});

t.test('rules of a device have different ids, and wait for those before them only', (t) => {
  const refused = (rules: readonly object[], message: RegExp): void => {
    t.match(faultRules.safeParse(rules).error?.message, message);
  };
  refused(
    [
      { id: 'a', do: 'hang' },
      { id: 'a', do: 'drop' },
    ],
    /is that of a rule before it/,
  );
  refused(
    [
      { afterHitOf: 'b', do: 'hang' },
      { id: 'b', do: 'drop' },
    ],
    /expected the id of a rule before it/,
  );
  refused(Array(65).fill({ do: 'drop' }), /at most 64 rules/);
  t.end();
});
