import t from 'tap';
import { ruleOfWords } from '../../../src/cli/fault-words.js';
import { faultRule } from '../../../src/faults/rule.js';

/** What `fault add` is given means the same as words and as JSON. */

const pairs: readonly (readonly [string, object])[] = [
  [
    'do=error:EIO on=write,flush every=100 after=5 count=3',
    { on: ['write', 'flush'], every: 100, after: 5, count: 3, do: { error: 'EIO' } },
  ],
  ['do=drop on=flush', { on: ['flush'], do: 'drop' }],
  ['do=delay:5ms', { do: { delay: '5ms' } }],
  [
    'do=delay:uniform:1ms:20ms whileFile=/run/slow',
    { do: { delay: { uniform: ['1ms', '20ms'] } }, whileFile: '/run/slow' },
  ],
  ['do=delay:exponential:5ms from=1s for=2s', { do: { delay: { exponential: '5ms' } }, from: '1s', for: '2s' }],
  ['do=delay:samples:1ms,7ms', { do: { delay: { samples: ['1ms', '7ms'] } } }],
  ['do=hang', { do: 'hang' }],
  ['do=hang:watchdog', { do: { hang: { watchdog: true } } }],
  ['do=torn:1', { do: { torn: { sectors: 1 } } }],
  ['do=torn:1:crash count=1', { do: { torn: { sectors: 1, then: 'crash' } }, count: 1 }],
  [
    'id=bit-rot on=read range=1GiB+64MiB probability=0.00001 per=sector do=corrupt:bits:1 seed=7',
    {
      id: 'bit-rot',
      on: ['read'],
      range: '1GiB+64MiB',
      probability: 0.00001,
      per: 'sector',
      do: { corrupt: { bits: 1 } },
      seed: 7,
    },
  ],
  ['do=corrupt:bytes:4:stuck', { do: { corrupt: { bytes: 4, stuck: true } } }],
  ['do=corrupt:byte:3:255 probability=1:100000', { do: { corrupt: { byte: 3, value: 255 } }, probability: '1:100000' }],
  ['do=short', { do: 'short' }],
  ['do=misdirect:-8KiB', { do: { misdirect: { by: '-8KiB' } } }],
  ['do=full:1GiB', { do: { full: { after: '1GiB' } } }],
  ['do=throttle:iops/100:bytes/1MiB', { do: { throttle: { iops: 100, bytes: '1MiB' } } }],
  ['do=crash:after afterHitOf=other', { do: { crash: 'after' }, afterHitOf: 'other' }],
  ['do=stop', { do: 'stop' }],
  ['do=badBlocks:1MiB,2MiB+8KiB:2', { do: { badBlocks: { at: ['1MiB', '2MiB+8KiB'], failingWrites: 2 } } }],
];

t.test('words and JSON are the same rule, and a valid one', (t) => {
  for (const [words, rule] of pairs) {
    t.strictSame(ruleOfWords(words.split(' ')), rule, words);
    t.strictSame(ruleOfWords([JSON.stringify(rule)]), rule);
    t.strictSame(faultRule.safeParse(rule), { success: true, data: rule }, words);
  }
  t.end();
});

t.test('what is neither is refused with the word', (t) => {
  const refused = (words: readonly string[], message: RegExp): void => {
    t.throws(() => ruleOfWords(words), { code: 'CONFIG', message });
  };
  refused(['do'], /"do": expected KEY=VALUE with one of id, on/);
  refused(['to=drop'], /"to=drop": expected KEY=VALUE/);
  refused(['do=explode'], /"do=explode": expected one of error, delay/);
  refused(['do=drop', 'do=hang'], /do is there already/);
  refused(['constructor=1'], /expected KEY=VALUE/);
  refused(['{"do":"drop"}', 'more'], /expected nothing after the JSON/);
  refused(['{"do"'], /./);
  t.end();
});
