import fc from 'fast-check';
import t from 'tap';
import { formatSize, parseDuration, parseSize } from '../../src/units.js';

const powers: Readonly<Record<string, number>> = {
  K: 2 ** 10,
  k: 2 ** 10,
  Ki: 2 ** 10,
  KiB: 2 ** 10,
  KB: 1e3,
  kb: 1e3,
  M: 2 ** 20,
  MiB: 2 ** 20,
  MB: 1e6,
  G: 2 ** 30,
  g: 2 ** 30,
  GiB: 2 ** 30,
  GB: 1e9,
  T: 2 ** 40,
  TiB: 2 ** 40,
  TB: 1e12,
};

t.test('a whole number with a unit is that many units', async (t) => {
  fc.assert(
    fc.property(fc.nat(), fc.constantFrom(...Object.keys(powers)), fc.constantFrom('', ' '), (count, unit, gap) => {
      const bytes = count * (powers[unit] ?? 0);
      return parseSize(`${count}${gap}${unit}`) === (Number.isSafeInteger(bytes) ? bytes : undefined);
    }),
  );
  t.equal(parseSize('1.5K'), 1536);
  t.equal(parseSize('0.1KB'), 100);
  t.equal(parseSize('8PiB'), undefined, 'beyond what JavaScript counts exactly');
});

t.test('whatever a size is made of, the answer is a whole, exact, non-negative number or none', async () => {
  const digits = fc.string({ unit: fc.constantFrom(...Array.from('0123456789.KMGTPiB -+eExX')) });
  fc.assert(
    fc.property(fc.oneof(digits, fc.string(), fc.double(), fc.integer()), (input) => {
      const size = parseSize(input);
      return size === undefined || (Number.isSafeInteger(size) && size >= 0);
    }),
  );
});

t.test('what is not a size is not taken for one', async (t) => {
  for (const text of [
    '',
    ' ',
    'K',
    '1 0K',
    '-1',
    '+1',
    '1e3',
    '0x10',
    '1.K',
    '.5K',
    '1.5',
    '1kib2',
    '10 GB!',
    '1K ',
    '١',
    '__proto__',
  ]) {
    t.equal(parseSize(text), undefined, JSON.stringify(text));
  }
});

t.test('durations need a unit', async (t) => {
  t.equal(parseDuration('250ms'), 250);
  t.equal(parseDuration('60s'), 60_000);
  t.equal(parseDuration('1.5min'), 90_000);
  t.equal(parseDuration('1h'), 3_600_000);
  for (const text of ['60', '', 's', '-1s', '1d', '0.0001ms', '1S']) t.equal(parseDuration(text), undefined, text);
});

t.test('sizes are shown short, and exactly where they can be', async (t) => {
  t.equal(formatSize(0), '0B');
  t.equal(formatSize(1023), '1023B');
  t.equal(formatSize(1024), '1K');
  t.equal(formatSize(1536), '1.5K');
  t.equal(formatSize(2 ** 20 - 1), '1M');
  t.equal(formatSize(512 * 2 ** 20), '512M');
  t.equal(formatSize(2 ** 52), '4P');
  fc.assert(
    fc.property(fc.nat({ max: 2 ** 52 }), (bytes) => {
      const shown =
        parseSize(formatSize(bytes)) ??
        Number.parseFloat(formatSize(bytes)) * (powers[formatSize(bytes).slice(-1)] ?? 2 ** 50);
      return Math.abs(shown - bytes) <= bytes * 0.05;
    }),
  );
});
