import fc from 'fast-check';
import t from 'tap';
import { RestartPolicy } from '../../../../src/supervisor/device/attempts.js';

const unlimited = { maxRestarts: 1e6, windowMs: 1 };

t.test('the first restart is immediate, then the delay doubles from 10 ms to 5 s while generations die young', (t) => {
  const policy = new RestartPolicy(unlimited, () => 0);
  const delays = Array.from({ length: 13 }, () => policy.next(999));
  t.strictSame(delays, [0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 5000]);
  t.end();
});

t.test('the delay stays finite however long the crash loop', (t) => {
  const policy = new RestartPolicy(unlimited, () => 0);
  const delays = Array.from({ length: 2000 }, () => policy.next(0));
  t.equal(delays.at(-1), 5000);
  t.end();
});

t.test('a generation that lived a second makes the next restart immediate again', (t) => {
  const policy = new RestartPolicy(unlimited, () => 0);
  t.strictSame(
    [0, 0, 0, 1000, 0, 0].map((lived) => policy.next(lived)),
    [0, 10, 20, 0, 10, 20],
  );
  t.end();
});

t.test('restarts beyond the limit are refused until the window has moved on', (t) => {
  let now = 0;
  const policy = new RestartPolicy({ maxRestarts: 2, windowMs: 1000 }, () => now);
  t.equal(policy.next(5000), 0);
  now = 600;
  t.equal(policy.next(5000), 0);
  now = 999;
  t.equal(policy.next(5000), undefined);
  now = 1000;
  t.equal(policy.next(5000), 0, 'the first restart has left the window');
  t.equal(policy.next(5000), undefined, 'the second one has not');
  t.end();
});

t.test('no restart at all with a limit of 0', (t) => {
  t.equal(new RestartPolicy({ maxRestarts: 0, windowMs: 1000 }, () => 0).next(5000), undefined);
  t.end();
});

t.test('reset forgets restarts and delay', (t) => {
  const policy = new RestartPolicy({ maxRestarts: 2, windowMs: 1000 }, () => 0);
  t.strictSame([policy.next(0), policy.next(0), policy.next(0)], [0, 10, undefined]);
  policy.reset();
  t.strictSame([policy.next(0), policy.next(0), policy.next(0)], [0, 10, undefined]);
  t.end();
});

t.test('never more restarts in any window than allowed, and never fewer than asked for and allowed', (t) => {
  const maxRestarts = 3;
  const windowMs = 100;
  const gaps = fc.array(fc.record({ gap: fc.nat(80), lived: fc.nat(2000) }), { maxLength: 60 });
  fc.assert(
    fc.property(gaps, (steps) => {
      let now = 0;
      const policy = new RestartPolicy({ maxRestarts, windowMs }, () => now);
      const granted: number[] = [];
      for (const { gap, lived } of steps) {
        now += gap;
        const recent = granted.filter((at) => now - at < windowMs).length;
        const delay = policy.next(lived);
        if ((delay !== undefined) !== recent < maxRestarts) return false;
        if (delay !== undefined) granted.push(now);
      }
      return true;
    }),
  );
  t.end();
});
