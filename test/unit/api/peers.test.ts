import { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';
import t from 'tap';
import { Peers } from '../../../src/api/peers.js';

/** Stands for a connection of the user that it carries. */
class Connection extends EventEmitter {
  readonly uid: number;
  readonly administrates: boolean;

  constructor(uid: number, administrates: boolean) {
    super();
    this.uid = uid;
    this.administrates = administrates;
  }
}

const peers = (): Peers => new Peers((socket) => socket as unknown as Connection);
const connection = (uid: number, administrates = true): Socket =>
  new Connection(uid, administrates) as unknown as Socket;
const mine = process.geteuid?.() ?? 0;

t.test('root and the user of the supervisor administrate, everybody else reads', async (t) => {
  const known = peers();
  for (const [uid, role] of [
    [0, 'admin'],
    [mine, 'admin'],
    [mine + 1, 'reader'],
    [65534, 'reader'],
  ] as const) {
    const socket = connection(uid);
    t.ok(known.admit(socket));
    t.equal(known.roleOf(socket), role);
  }
});

t.test('whose connection nobody knows is refused, and never an administrator', async (t) => {
  const unknown = new Peers(() => {
    throw new Error('no descriptor');
  });
  const socket = connection(0);
  t.notOk(unknown.admit(socket));
  t.equal(unknown.roleOf(socket), 'nobody');
  t.notOk(unknown.allows(socket));
});

t.test('root without the capability is nobody, with the share of a reader', async (t) => {
  const known = peers();
  const sockets = Array.from({ length: 20 }, () => connection(0, false));
  const admitted = sockets.filter((socket) => known.admit(socket));
  t.equal(admitted.length, 8);
  for (const socket of admitted) t.equal(known.roleOf(socket), 'nobody');
  const root = connection(0);
  t.ok(known.admit(root));
  t.equal(known.roleOf(root), 'admin');
  t.ok(Array.from({ length: 100 }, () => known.allows(root)).every(Boolean));
  const reader = connection(100_000, false);
  t.ok(known.admit(reader));
  t.equal(known.roleOf(reader), 'reader');
});

t.test('F1 readers leave room for each other and for administrators', async (t) => {
  const crowd = peers();
  const uids = Array.from({ length: 40 }, (_, index) => 100_000 + index);
  const admitted = uids.flatMap((uid) =>
    Array.from({ length: 20 }, () => connection(uid)).filter((socket) => crowd.admit(socket)),
  );
  t.equal(admitted.length, 32);
  t.equal(admitted.filter((socket) => (socket as unknown as Connection).uid === uids[0]).length, 8);
  t.ok(Array.from({ length: 100 }, () => crowd.admit(connection(0))).every(Boolean));
  admitted[0]?.emit('close');
  t.ok(crowd.admit(connection(99_999)), 'room comes back');
  t.notOk(crowd.admit(connection(99_999)));
});

t.test('F1 a reader who asks too often is refused, also over another connection', async (t) => {
  const asked = peers();
  const first = connection(100_000);
  const second = connection(100_000);
  const other = connection(100_001);
  const admin = connection(0);
  for (const socket of [first, second, other, admin]) t.ok(asked.admit(socket));
  const answers = Array.from({ length: 60 }, () => asked.allows(first));
  t.equal(answers.filter(Boolean).length, 50);
  t.notOk(asked.allows(second));
  first.emit('close');
  second.emit('close');
  const again = connection(100_000);
  t.ok(asked.admit(again));
  t.notOk(asked.allows(again), 'the count outlives the connections');
  t.ok(asked.allows(other));
  t.ok(Array.from({ length: 200 }, () => asked.allows(admin)).every(Boolean));
});
