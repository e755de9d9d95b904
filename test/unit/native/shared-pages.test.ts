import { randomFillSync } from 'node:crypto';
import { fstatSync, openSync, writeSync } from 'node:fs';
import t from 'tap';
import {
  createSharedPages,
  QueuePhase,
  reopenSharedPages,
  SIGNS,
  type SharedPages,
} from '../../../src/native/addon/shared-pages.js';
import { crashReport, describeCrash, describeQuarantined } from '../../../src/supervisor/crashes/crash-report.js';
import { FailureReports } from '../../../src/supervisor/ublk/failure-reports.js';
import { ProcessGeneration } from '../../../src/supervisor/ublk/generation.js';
import { Quarantine } from '../../../src/supervisor/crashes/quarantine.js';
import { Rounds } from '../../../src/timing/rounds.js';
import { describeRequest, requestStatus } from '../../../src/api/operations.js';
import type { ExitStatus } from '../../../src/api/status.js';
import { HangDetector } from '../../../src/supervisor/ublk/hang-detector.js';

/** A queue process can write to all of its device's shared page, and the supervisor reads that all the time. */

const QUEUES = 2;
const DEPTH = 16;
const indices = [...Array(QUEUES).keys()];

function scribble(pages: SharedPages, fill: (memory: Buffer) => void): void {
  const memory = Buffer.alloc(fstatSync(pages.fd).size);
  fill(memory);
  writeSync(pages.fd, memory, 0, memory.length, 0);
}

const scribbles: readonly (readonly [string, (memory: Buffer) => void])[] = [
  ['ones', (memory) => memory.fill(0xff)],
  ['the largest positive numbers', (memory) => memory.fill(0x7f)],
  ['ones and zeros', (memory) => memory.fill(Buffer.from('ffffffff00000000', 'hex'))],
  ...[...Array(50).keys()].map((index) => [`noise ${index}`, randomFillSync] as const),
];

const plain = (value: number): boolean => Number.isFinite(value) && value >= 0;

for (const [what, fill] of scribbles) {
  t.test(`a shared page full of ${what} can be read`, async (t) => {
    const pages = createSharedPages(QUEUES, DEPTH, false);
    scribble(pages, fill);
    for (const index of indices) {
      const { phase, inflight, failureErrno, failureStep, sinceAnswerMs, operations } = pages.readQueue(index);
      t.ok(phase >= QueuePhase.absent && phase <= QueuePhase.released, String(phase));
      t.ok(plain(inflight) && Number.isInteger(failureErrno) && failureStep.length <= 64);
      t.ok(sinceAnswerMs === null || plain(sinceAnswerMs), String(sinceAnswerMs));
      for (const counters of operations) for (const value of Object.values(counters)) t.ok(plain(value as number));
      t.ok(pages.stackOf(index).length <= 2048);
      const requests = pages.outstanding(index);
      t.ok(requests.length <= DEPTH);
      for (const request of requests) {
        t.ok(plain(request.ageMs) && plain(request.startSector), JSON.stringify(request));
        t.type(describeRequest(requestStatus(request)), 'string');
      }
    }
    const marked = pages.marked();
    t.ok(marked.length <= 256);
    for (const request of marked) t.type(describeQuarantined(request), 'string');

    const lines: string[] = [];
    const failures = new FailureReports(pages, QUEUES, (_queue, message) => lines.push(message));
    failures.look(indices.map(() => 1));
    t.ok(lines.length <= 16 * QUEUES);
    const generation = new ProcessGeneration({
      number: 1,
      pages,
      processes: indices.map((index) => ({ pid: 2 ** 22 + 1 + index, pidfd: null })),
      channels: [],
      output: null,
      rounds: new Rounds(),
      requestTimeoutMs: 1000,
      failures,
      onReport: () => undefined,
    });
    await generation.allExited;
    t.match(generation.phase(), /^(preparing|fetching|fetched)$/);
    const remains = generation.remains();
    const exit: ExitStatus = { queue: 0, pid: 1, code: 1, signal: null, reason: null, stack: null, at: '' };
    const report = crashReport(
      { generation: 1, exit, remains },
      { device: 'x', backend: 'y', convicted: [], oomKills: null },
    );
    t.doesNotThrow(() => JSON.stringify(report));
    t.type(describeCrash(report), 'string');
    const detector = new HangDetector({ timeoutMs: 1000, javascript: true });
    const signs = new Float64Array(SIGNS.count * QUEUES);
    pages.signsOfLife(signs);
    const queues = indices.map((index) => {
      const sign = (which: number): number => signs[index * SIGNS.count + which] ?? NaN;
      const [progress, answered] = [sign(SIGNS.progress), sign(SIGNS.answered)];
      t.ok(sign(SIGNS.phase) <= QueuePhase.released && [progress, answered, sign(SIGNS.oldestMs)].every(plain));
      const overdue = pages.outstanding(index);
      return { serving: true, progress, answered, busy: true, overdue, process: () => 'running' as const };
    });
    for (const now of [0, 2000, 4000]) detector.observe({ now, queues });
    const quarantine = new Quarantine(3);
    quarantine.restore(marked);
    for (let crash = 0; crash < 3; crash++) {
      quarantine.crashed({ ofDead: indices.map((queue) => pages.outstanding(queue)), others: marked });
    }
    t.doesNotThrow(() => {
      pages.mark(quarantine.marked);
      pages.beginGeneration(true);
      pages.drain();
    });
  });
}

t.test('a shared page of another size is not taken for one', (t) => {
  const small = createSharedPages(1, 1, false);
  const again = openSync(`/proc/self/fd/${small.fd}`, 'r+');
  t.throws(() => reopenSharedPages(2, 64, again), { code: 'EPROTO' });
  t.end();
});
