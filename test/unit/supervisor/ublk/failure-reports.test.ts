import t from 'tap';
import type { FailedRequests } from '../../../../src/native/addon/shared-pages.js';
import { FailureReports } from '../../../../src/supervisor/ublk/failure-reports.js';

const ENOSPC = 28;
const EIO = 5;
const MINUTE_MS = 60_000;

/** A queue with such failures, and what is told of it. */
function rig(before: readonly FailedRequests[] = []) {
  const table = { failures: before };
  const clock = { now: 0 };
  const told: string[] = [];
  const reports = new FailureReports(
    { failures: () => table.failures },
    1,
    (queue, message) => told.push(`${queue}: ${message}`),
    () => clock.now,
  );
  const look = (...failures: readonly FailedRequests[]): void => {
    table.failures = failures;
    reports.look([failures.reduce((sum, { count }) => sum + count, 0)]);
  };
  return { look, clock, told };
}

const write = { operation: 1, startSector: 4096, sectors: 8, error: ENOSPC };
const read = { operation: 0, startSector: 0, sectors: 1, error: EIO };

t.test('the first of each kind is told at once, how many there were then once a minute', (t) => {
  const { look, clock, told } = rig();
  look();
  look({ ...write, count: 1 });
  look({ ...write, count: 1 });
  look({ ...write, count: 900 }, { ...read, count: 3 });
  t.strictSame(told, [
    '0: a write of 8 sectors at 4096 failed: no space left on device (ENOSPC)',
    '0: a read of 1 sectors at 0 failed: i/o error (EIO), and 2 before it',
  ]);
  clock.now = MINUTE_MS;
  look({ ...write, count: 900 }, { ...read, count: 3 });
  t.match(told.slice(2), [/a write of 8 sectors at 4096 failed: .* \(ENOSPC\), and 898 before it/]);
  clock.now = 3 * MINUTE_MS;
  look({ ...write, count: 900 }, { ...read, count: 3 });
  t.equal(told.length, 3, 'there were no more');
  t.end();
});

t.test('what an earlier supervisor told is not told again', (t) => {
  const { look, told } = rig([{ ...write, count: 7 }]);
  look({ ...write, count: 7 });
  t.strictSame(told, []);
  look({ ...write, count: 8 });
  t.equal(told.length, 1);
  t.end();
});

t.test('what no queue process of ours writes is not told', (t) => {
  const { look, told } = rig();
  look({ ...write, error: 5000, count: 1 }, { ...write, operation: 77, count: 1 }, { ...write, error: 0, count: 1 });
  t.strictSame(told, []);
  t.end();
});
