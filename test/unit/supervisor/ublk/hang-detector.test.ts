import t from 'tap';
import type { ProcessState } from '../../../../src/supervisor/host/processes.js';
import { HangDetector, type Finding, type QueueSight } from '../../../../src/supervisor/ublk/hang-detector.js';

const TIMEOUT_MS = 3500;
const request = (
  ageMs: number,
  more: { operation?: number; overtaken?: boolean; overtakenByItsKind?: boolean } = {},
) => {
  return {
    ageMs,
    operation: 0,
    startSector: 8,
    sectors: 4,
    injected: false,
    overtaken: false,
    overtakenByItsKind: false,
    ...more,
  };
};

/** A queue whose loop turns, and that has nothing to do. */
const idle = (index: number): QueueSight => {
  return { serving: true, progress: index, answered: 0, busy: false, overdue: [], process: () => null };
};

/** Observations a second apart of one queue; `jump` adds to the time of the one at that index and of all after it. */
function watch(
  count: number,
  sight: (index: number) => Partial<QueueSight>,
  { javascript = false, jump }: { javascript?: boolean; jump?: { at: number; ms: number } } = {},
): (Finding & { index: number })[] {
  const detector = new HangDetector({ timeoutMs: TIMEOUT_MS, javascript });
  return Array.from({ length: count }, (_, index) => {
    const now = index * 1000 + (jump && index >= jump.at ? jump.ms : 0);
    return { index, ...detector.observe({ now, queues: [{ ...idle(index), ...sight(index) }] }) };
  });
}

const firstHang = (findings: readonly (Finding & { index: number })[]) =>
  findings.flatMap(({ index, hang }) => (hang === null ? [] : [{ index, ...hang }])).at(0);
const stalls = (findings: readonly Finding[]) => findings.map(({ stall }) => stall?.reason ?? null);
const none = { overtaken: null };

t.test('a queue that gives no sign of life is asked for one, and hangs when it still gives none', (t) => {
  const seen = watch(6, (index) => ({ progress: 7, process: () => (index > 1 ? 'waiting' : null) }));
  t.strictSame(
    seen.map(({ ask }) => ask),
    [[], [0], [0], [0], [0], [0]],
  );
  t.strictSame(firstHang(seen), {
    index: 4,
    queue: 0,
    reason: 'it gave no sign of life for 4.0 s: it does nothing',
    ...none,
  });
  t.equal(firstHang(watch(20, (index) => ({ progress: Math.floor(index / 4) }))), undefined);
  t.strictSame(
    watch(3, () => ({ serving: false, progress: 0 })).map(({ ask }) => ask),
    [[], [], []],
    'one that boots',
  );
  t.end();
});

t.test(
  'a hang is seen as soon as the time-out has passed, and one that cannot be ended is not looked at all the time',
  (t) => {
    for (const process of ['waiting', 'asleep'] as const) {
      const detector = new HangDetector({ timeoutMs: 1000, javascript: false });
      let now = 0;
      const looks = Array.from({ length: 10 }, () => {
        const sight = { ...idle(7), busy: true, process: () => process };
        const { hang, nextMs } = detector.observe({ now, queues: [sight] });
        const look = { now, hangs: hang !== null };
        now += nextMs;
        return look;
      });
      t.strictSame(
        looks.slice(0, 7).map((look) => look.now),
        [0, 250, 500, 750, 1000, 1001, 1251],
      );
      t.strictSame(
        looks.findIndex(({ hangs }) => hangs),
        process === 'waiting' ? 5 : -1,
      );
    }
    t.end();
  },
);

t.test('/proc is looked at only of a queue that was asked for a sign of life in vain', (t) => {
  const looked: number[] = [];
  const process = (index: number) => () => {
    looked.push(index);
    return 'asleep' as const;
  };
  watch(100, (index) => ({ process: process(index) }));
  watch(100, (index) => ({ process: process(index), progress: Math.floor(index / 3) }));
  watch(100, (index) => ({ process: process(index), busy: true, overdue: [request(9000)] }));
  t.strictSame(looked, []);
  watch(6, (index) => ({ process: process(index), progress: 7 }));
  t.strictSame(looked, [4, 5]);
  t.end();
});

t.test('the reason names the request and what the process does', (t) => {
  const stuck = (process: ProcessState) =>
    firstHang(watch(8, () => ({ progress: 7, process: () => process, overdue: [request(4200)] })))?.reason;
  t.equal(stuck('waiting'), 'a read of 4 sectors at 8 is unanswered after 4.2 s: it does nothing');
  t.equal(stuck('running'), 'a read of 4 sectors at 8 is unanswered after 4.2 s: it computes without end');
  t.equal(stuck('ending'), 'it was ended 4.0 s ago and is not gone');
  t.equal(stuck('stopped'), 'it has been stopped, by a signal or a debugger, for 4.0 s');
  t.end();
});

t.test('a process in an uninterruptible sleep is waited for', (t) => {
  const seen = watch(60, () => ({ progress: 7, process: () => 'asleep' }));
  t.equal(firstHang(seen), undefined);
  t.strictSame(stalls(seen).slice(3, 5), [null, 'its process waits in the kernel for 4.0 s']);
  t.end();
});

t.test('a native backend whose loop turns is waited for, however long', (t) => {
  const overdue = (index: number) =>
    index < 4 ? [] : [request(1000 * index, { overtaken: true, overtakenByItsKind: true })];
  const seen = watch(300, (index) => ({ busy: true, overdue: overdue(index) }));
  t.equal(firstHang(seen), undefined);
  t.equal(stalls(seen).at(-1), 'a read of 4 sectors at 8 is unanswered after 299.0 s: the store does not answer');
  t.end();
});

t.test('one in JavaScript that answers nothing at all hangs, which says nothing against its requests', (t) => {
  const silent = watch(8, (index) => ({ busy: true, overdue: index < 4 ? [] : [request(1000 * index)] }), {
    javascript: true,
  });
  const reason = 'a read of 4 sectors at 8 is unanswered after 4.0 s, and nothing else was answered';
  t.strictSame(firstHang(silent), { index: 4, queue: 0, reason, ...none });
  t.end();
});

t.test('any answer is a sign of life, unless a later request had it', (t) => {
  const slow = watch(200, (index) => ({ busy: true, answered: Math.floor(index / 3), overdue: [request(5000)] }), {
    javascript: true,
  });
  t.equal(firstHang(slow), undefined, 'in the order of the requests');
  const overtaken = (...overdue: ReturnType<typeof request>[]) =>
    firstHang(watch(3, (index) => ({ busy: true, answered: index, overdue }), { javascript: true }));
  const lost = request(5000, { overtaken: true, overtakenByItsKind: true });
  t.strictSame(overtaken(lost), {
    index: 1,
    queue: 0,
    reason: 'a read of 4 sectors at 8 is unanswered after 5.0 s, though later ones were answered',
    overtaken: lost,
  });
  t.match(overtaken(lost, request(4000)), { overtaken: null }, 'with several it is not the request');
  t.match(overtaken({ ...lost, overtakenByItsKind: false }), { overtaken: null }, 'what was answered may be cached');
  t.match(overtaken({ ...lost, operation: 2 }), { overtaken: null }, 'a flush');
  const once = watch(3, (index) => ({ busy: true, answered: index, overdue: index === 1 ? [lost] : [] }), {
    javascript: true,
  });
  t.equal(firstHang(once), undefined, 'seen once');
  t.end();
});

t.test('a jump of the clock counts as no more than two intervals', (t) => {
  const jump = { at: 1, ms: 1e6 };
  t.equal(firstHang(watch(2, () => ({ progress: 7, process: () => 'waiting' }), { jump })), undefined);
  const silent = watch(2, () => ({ busy: true, overdue: [request(1e6)] }), { jump, javascript: true });
  t.equal(firstHang(silent), undefined);
  t.end();
});
