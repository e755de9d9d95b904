import t from 'tap';
import { fewAtOnce } from '../../../src/timing/few-at-once.js';

const numbers = Array.from({ length: 30 }, (_none, index) => index);

t.test('all are done, in order, never more than a few at a time, whatever becomes of them', async (t) => {
  const begun: number[] = [];
  let underWay = 0;
  let most = 0;
  const outcomes = await fewAtOnce(numbers, async (number) => {
    begun.push(number);
    underWay += 1;
    most = Math.max(most, underWay);
    await new Promise(setImmediate);
    underWay -= 1;
    if (number === 7) throw new Error('seven');
    return number * 2;
  });
  t.strictSame(begun, numbers);
  t.equal(most, 8);
  t.match(outcomes[7], { status: 'rejected', reason: { message: 'seven' } });
  t.match(outcomes[29], { status: 'fulfilled', value: 58 });
  t.equal(outcomes.length, 30);
});

t.test('those that take long keep none of the others waiting', async (t) => {
  const begun: number[] = [];
  // Nothing else keeps this process from ending.
  const alive = setInterval(() => undefined, 1000);
  let end = (): void => undefined;
  const slow = new Promise<void>((resolve) => {
    end = resolve;
  });
  const done = fewAtOnce(
    numbers,
    async (number) => {
      begun.push(number);
      if (number < 8) await slow;
      else if (number === 29) end();
    },
    1,
  );
  t.equal((await done).length, 30);
  clearInterval(alive);
  t.strictSame(begun, numbers);
});

t.test('none of nothing', async (t) => {
  t.strictSame(await fewAtOnce([], () => Promise.reject(new Error('no'))), []);
});
