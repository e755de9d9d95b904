import { mock } from 'node:test';
import t, { type Test } from 'tap';
import { Rounds } from '../../../src/timing/rounds.js';

interface Time {
  now: number;
  /** Timers are due one after the other, however many. */
  readonly pass: (ms: number) => void;
}

function stopTime(t: Test): Time {
  mock.timers.enable({ apis: ['setTimeout'] });
  t.teardown(() => mock.timers.reset());
  const time = {
    now: 0,
    pass: (ms: number) => {
      for (let i = 0; i < ms; i++) {
        time.now += 1;
        mock.timers.tick(1);
      }
    },
  };
  return time;
}

t.test('each is looked at in its interval, a part of them at each of a few moments', (t) => {
  const time = stopTime(t);
  const rounds = new Rounds(() => time.now);
  const looks = Array.from({ length: 160 }, () => 0);
  const inTurn = new Map<number, number>();
  looks.forEach((_, index) => {
    // Not all in the same turn, as devices that start one after the other.
    if (index % 20 === 0) time.pass(1);
    rounds.watch(1000, () => {
      looks[index] = (looks[index] ?? 0) + 1;
      inTurn.set(time.now, (inTurn.get(time.now) ?? 0) + 1);
      return 1000;
    });
  });
  let often = 0;
  rounds.watch(100, () => {
    often += 1;
    return 100;
  });
  time.pass(10_050);
  t.ok(looks.every((count) => count === 10));
  t.equal(often, 100);
  t.ok(Math.max(...inTurn.values()) <= 20, String(Math.max(...inTurn.values())));
  t.ok(inTurn.size <= 80, `woken ${inTurn.size} times in ten intervals`);
  // We stood still.
  time.now += 60_300;
  time.pass(50);
  t.ok(
    looks.every((count) => count <= 11),
    'what was missed is not made up for',
  );
  inTurn.clear();
  time.pass(5000);
  t.ok(looks.every((count) => count >= 15));
  t.ok(Math.max(...inTurn.values()) <= 20, 'they are as far apart as before');
  t.end();
});

t.test('what is ended is not looked at again, and nothing to look at needs no timer', (t) => {
  const time = stopTime(t);
  const timers = t.capture(globalThis, 'setTimeout', globalThis.setTimeout);
  const rounds = new Rounds(() => time.now);
  const looks: string[] = [];
  const endA = rounds.watch(100, () => {
    looks.push('a');
    endA();
    return 100;
  });
  const endB = rounds.watch(100, () => {
    looks.push('b');
    return 100;
  });
  time.pass(200);
  endB();
  time.pass(500);
  const made = timers().length;
  t.equal(looks.filter((name) => name === 'a').length, 1);
  time.pass(1000);
  t.equal(timers().length, 0);
  t.ok(made < 10, String(made));
  const end = rounds.watch(100, () => {
    looks.push('c');
    return 100;
  });
  time.pass(150);
  t.ok(looks.includes('c'), 'and one again when there is');
  end();
  t.end();
});
