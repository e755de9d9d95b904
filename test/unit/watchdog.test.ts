import t from 'tap';
import { HangDetector, type Hang, type Observation } from '../../src/supervisor/watchdog.js';

const read = (ageMs: number) => ({ ageMs, operation: 0, startSector: 8, sectors: 4 });

/** Observations a second apart; `jump` adds to the time of the one at that index and of all after it. */
function watch(timeoutMs: number, seen: readonly Partial<Observation>[], jump?: { at: number; ms: number }): Hang[] {
  const detector = new HangDetector(timeoutMs, 1000);
  return seen.flatMap((partial, index) => {
    const now = index * 1000 + (jump && index >= jump.at ? jump.ms : 0);
    const hang = detector.observe({ now, oldest: [null], answered: 0, waiting: 0, stopped: [], ...partial });
    return hang === null ? [] : [{ ...hang, reason: `${String(index)}: ${hang.reason}` }];
  });
}

const times = <Value>(count: number, value: Value): Value[] => Array.from({ length: count }, () => value);

t.test('an overdue request is a hang when it is seen twice', (t) => {
  const seen = [3000, 4000, 5000].map((ageMs) => ({ oldest: [null, read(ageMs)], waiting: 1, answered: ageMs }));
  t.strictSame(watch(3500, seen), [{ queue: 1, reason: '2: a read of 4 sectors at 8 is unanswered after 5.0 s' }]);
  t.end();
});

t.test('one that was answered in time is not, nor one that was late because all stood still', (t) => {
  t.strictSame(watch(3500, [{ oldest: [read(3400)] }, { oldest: [null] }, { oldest: [read(3000)] }]), []);
  const afterSuspend = [{ oldest: [read(10)] }, { oldest: [read(1e6)] }, { oldest: [null] }];
  t.strictSame(watch(3500, afterSuspend, { at: 1, ms: 1e6 }), []);
  t.end();
});

t.test('waiting requests that nobody takes are a hang, as long as nothing at all is answered', (t) => {
  t.strictSame(watch(3500, times(8, { waiting: 1 }))[0]?.reason, '4: requests wait and none was taken for 4.0 s');
  const takenLater = [
    { waiting: 1 },
    ...[900, 1900, 2900, 3900].map((ageMs) => ({ waiting: 1, oldest: [read(ageMs)] })),
  ];
  t.strictSame(watch(3950, takenLater)[0]?.reason, '4: a read of 4 sectors at 8 is unanswered after 4.0 s');
  const busy = times(20, 0).map((_, answered) => ({ waiting: 9, answered }));
  t.strictSame(watch(3500, busy), []);
  t.strictSame(watch(3500, times(20, { waiting: 0 })), [], 'an idle device');
  t.end();
});

t.test('a jump of the clock counts as no more than two intervals of silence', (t) => {
  t.strictSame(watch(3500, times(3, { waiting: 1 }), { at: 1, ms: 1e6 }), []);
  t.end();
});

t.test('a process that is stopped for longer than the time-out is a hang, whoever waits', (t) => {
  const [hang] = watch(3500, times(8, { stopped: [1] }));
  t.strictSame(hang, { queue: 1, reason: '4: it has been stopped, by a signal or a debugger, for 4.0 s' });
  const briefly = times(8, 0).map((_, index) => ({ stopped: index === 3 ? [] : [1] }));
  t.strictSame(watch(3500, briefly.slice(0, 7)), []);
  t.strictSame(watch(3500, times(3, { stopped: [0] }), { at: 1, ms: 1e6 }), [], 'a jump of the clock');
  t.end();
});
