import t from 'tap';
import type { RequestIdentity } from '../../../../src/native/request.js';
import { MOST_QUARANTINED, Quarantine } from '../../../../src/supervisor/crashes/quarantine.js';

const request = (startSector: number, operation = 0): RequestIdentity => ({ operation, startSector, sectors: 8 });
const poison = request(8);
const innocent = [request(16), request(24), request(32, 1)];
const other = request(40);

/** One process died, with these requests in its backend. */
const death = (ofDead: readonly RequestIdentity[], others: readonly RequestIdentity[] = []) => ({
  ofDead: [ofDead],
  others,
});
const sectors = (requests: readonly RequestIdentity[]) => requests.map(({ startSector }) => startSector);
const alone = ({ marked }: Quarantine) => sectors(marked.filter(({ refused }) => !refused));

t.test('the third crash in a row with a request puts it into quarantine', (t) => {
  const quarantine = new Quarantine(3);
  t.strictSame(quarantine.crashed(death([poison])).convicted, []);
  t.strictSame(quarantine.marked, []);
  t.strictSame(quarantine.crashed(death([poison])).convicted, []);
  t.strictSame(quarantine.marked, [{ ...poison, refused: false, crashes: 2 }]);
  const convicted = [{ ...poison, refused: true, crashes: 3 }];
  t.strictSame(quarantine.crashed(death([poison])).convicted, convicted);
  t.strictSame([quarantine.quarantined, quarantine.marked], [convicted, convicted]);
  t.end();
});

t.test('what is under way by chance is not, however often', (t) => {
  const quarantine = new Quarantine(3);
  quarantine.crashed(death([poison, ...innocent]));
  quarantine.crashed(death([...innocent, poison]));
  t.strictSame(alone(quarantine).sort(), [16, 24, 32, 8].sort());
  // From here on the queue gives its backend one of them at a time: the others wait, or were answered.
  const waiting = quarantine.marked.filter(({ startSector }) => startSector >= 24);
  t.strictSame(sectors(quarantine.crashed(death([poison], waiting)).convicted), [8]);
  t.strictSame(alone(quarantine).sort(), [24, 32]);
  t.strictSame(quarantine.crashed(death([other])).convicted, [], 'the rest was answered');
  t.strictSame(alone(quarantine), []);
  t.end();
});

t.test('of several in one process none is judged', (t) => {
  const quarantine = new Quarantine(3);
  for (let crash = 0; crash < 5; crash += 1) {
    t.strictSame(quarantine.crashed(death([poison, ...innocent])), { convicted: [], unplaced: [] });
  }
  t.strictSame(sectors(quarantine.crashed(death([poison])).convicted), [8]);
  t.end();
});

t.test('the count restarts when the request was answered, also in another queue', (t) => {
  const quarantine = new Quarantine(3);
  quarantine.crashed(death([poison]));
  quarantine.crashed(death([poison]));
  quarantine.crashed(death([other]));
  for (const convicted of [[], [], [8]])
    t.strictSame(sectors(quarantine.crashed(death([poison])).convicted), convicted);
  t.end();
});

t.test('what another process ofDead, or what waited, keeps its count and gets no worse', (t) => {
  const quarantine = new Quarantine(3);
  quarantine.crashed(death([poison]));
  quarantine.crashed(death([poison]));
  for (let crash = 0; crash < 5; crash += 1) quarantine.crashed(death([other], [poison]));
  t.strictSame(sectors(quarantine.quarantined), [40]);
  t.strictSame(sectors(quarantine.crashed(death([poison])).convicted), [8]);
  t.end();
});

t.test('a kill from outside counts for nothing, but what it was answered before it does', (t) => {
  const quarantine = new Quarantine(3);
  for (let kill = 0; kill < 10; kill += 1) quarantine.interrupted(death(innocent));
  t.strictSame(quarantine.marked, []);
  quarantine.crashed(death([poison, other]));
  quarantine.crashed(death([poison, other]));
  quarantine.interrupted(death([poison]));
  t.strictSame(quarantine.marked, [{ ...poison, refused: false, crashes: 2 }]);
  t.strictSame(sectors(quarantine.crashed(death([poison])).convicted), [8]);
  t.end();
});

t.test('two that each crash the backend are found one after the other', (t) => {
  const quarantine = new Quarantine(3);
  const both = [poison, request(80)];
  quarantine.crashed(death(both));
  quarantine.crashed(death(both));
  t.strictSame(sectors(quarantine.crashed(death([poison], both)).convicted), [8]);
  t.strictSame(sectors(quarantine.crashed(death([request(80)], quarantine.marked)).convicted), [80]);
  t.strictSame(sectors(quarantine.marked), [8, 80]);
  t.end();
});

t.test('one process each of two queues dies at once', (t) => {
  const quarantine = new Quarantine(1);
  const { convicted } = quarantine.crashed({ ofDead: [[poison], [request(80)]], others: [] });
  t.strictSame(sectors(convicted), [8, 80]);
  t.end();
});

t.test('after 1 crash: at once if it was alone', (t) => {
  const quarantine = new Quarantine(1);
  t.strictSame(quarantine.crashed(death([poison, other])).convicted, []);
  t.strictSame(alone(quarantine), [8, 40]);
  t.strictSame(sectors(quarantine.crashed(death([other], [poison])).convicted), [40]);
  t.strictSame(sectors(quarantine.crashed(death([poison])).convicted), [8]);
  t.end();
});

t.test('a hang says nothing, but of the one request that was overtaken', (t) => {
  const quarantine = new Quarantine(3);
  for (let hang = 0; hang < 20; hang += 1) quarantine.hung(death([poison, ...innocent]), null);
  t.strictSame([quarantine.quarantined, quarantine.marked], [[], []]);
  quarantine.hung(death([poison, ...innocent]), poison);
  quarantine.hung(death([poison]), poison);
  t.strictSame(quarantine.marked, [], 'it need not be alone to be told from others');
  quarantine.hung(death([other]), null);
  for (const convicted of [[], [], [8]]) {
    t.strictSame(sectors(quarantine.hung(death([poison, other]), poison).convicted), convicted);
  }
  t.match(quarantine.quarantined, [{ crashes: 3 }]);
  t.end();
});

t.test('a flush is never suspected, nor convicts what was with it', (t) => {
  const flush = { operation: 2, startSector: 0, sectors: 0 };
  const quarantine = new Quarantine(1);
  for (let crash = 0; crash < 9; crash += 1) {
    t.strictSame(quarantine.crashed(death([flush])).convicted, []);
    t.strictSame(quarantine.hung(death([flush]), flush).convicted, []);
    t.strictSame(quarantine.crashed(death([flush, poison])).convicted, []);
  }
  t.strictSame(sectors(quarantine.crashed(death([poison])).convicted), [8]);
  const adopted = new Quarantine(3);
  adopted.restore([
    { ...flush, refused: true, crashes: 3 },
    { ...flush, refused: false, crashes: 2 },
  ]);
  t.strictSame([adopted.quarantined, adopted.marked], [[], []], 'an earlier version may have');
  t.end();
});

t.test('0: never', (t) => {
  const quarantine = new Quarantine(0);
  for (let crash = 0; crash < 20; crash += 1) {
    quarantine.crashed(death([poison]));
    quarantine.hung(death([poison]), poison);
  }
  t.strictSame([quarantine.quarantined, quarantine.marked], [[], []]);
  t.end();
});

t.test('a request is told by its operation, place and length', (t) => {
  const quarantine = new Quarantine(3);
  const near = [poison, request(8, 1), { ...poison, sectors: 16 }, request(9)];
  for (const one of near) quarantine.crashed(death([one]));
  t.strictSame(quarantine.quarantined, []);
  t.end();
});

t.test('the quarantine has room for 64, and marks for 256', (t) => {
  const quarantine = new Quarantine(2);
  for (let sector = 0; sector <= MOST_QUARANTINED; sector += 1) {
    quarantine.crashed(death([request(sector)]));
    const { convicted, unplaced } = quarantine.crashed(death([request(sector)]));
    t.equal(convicted.length, sector < MOST_QUARANTINED ? 1 : 0);
    t.strictSame(sectors(unplaced), sector < MOST_QUARANTINED ? [] : [sector]);
  }
  const many = Array.from({ length: 400 }, (_, index) => request(1000 + index));
  quarantine.crashed(death(many));
  quarantine.crashed(death(many.slice(300)));
  t.equal(quarantine.marked.length, 64 + 100);
  quarantine.crashed(death(many));
  t.equal(quarantine.marked.length, 256);
  t.strictSame(sectors(quarantine.marked.slice(64, 164)), sectors(many.slice(300)), 'the likeliest first');
  t.end();
});

t.test('the next supervisor goes on from the marks', (t) => {
  const first = new Quarantine(3);
  for (let crash = 0; crash < 3; crash += 1) first.crashed(death([poison]));
  for (let crash = 0; crash < 2; crash += 1) first.crashed(death([other]));
  const next = new Quarantine(3);
  next.restore(first.marked);
  t.strictSame([next.marked, next.quarantined], [first.marked, first.quarantined]);
  t.strictSame(sectors(next.crashed(death([other])).convicted), [40]);
  t.end();
});

t.test('cleared it knows nothing', (t) => {
  const quarantine = new Quarantine(2);
  for (let crash = 0; crash < 2; crash += 1) quarantine.crashed(death([poison]));
  quarantine.crashed(death([other]));
  quarantine.clear();
  t.strictSame([quarantine.quarantined, quarantine.marked], [[], []]);
  t.strictSame(quarantine.crashed(death([other])).convicted, []);
  t.end();
});
