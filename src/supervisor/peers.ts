import type { Socket } from 'node:net';
import { peerUid } from '../native/binding.js';

/** Readers together get half of the server's connections, so that there is always room for an administrator. */
const MOST_READER_CONNECTIONS = 32;
/** Of one reader, so that there is room for another. */
const MOST_CONNECTIONS_EACH = 8;
const MOST_REQUESTS_EACH = 50;
const WINDOW_MS = 1_000;

/** An administrator may do everything, a reader look. */
export type Role = 'admin' | 'reader';

/** What is counted of a reader's uid for as long as it is connected. */
interface Reader {
  connections: number;
  /** Since `windowStart`. */
  requests: number;
  windowStart: number;
}

/**
 * Who is at the other end of the control socket's connections, and how much of it they may have. Whoever can connect and
 * is neither root nor the supervisor's own user got in by the socket's group, and is a reader.
 */
export class Peers {
  readonly #uidOf: (socket: Socket) => number;
  readonly #admins: ReadonlySet<number>;
  readonly #uids = new WeakMap<Socket, number>();
  readonly #readers = new Map<number, Reader>();

  /** `uidOf` throws where it does not know. */
  constructor(uidOf: (socket: Socket) => number = uidOfPeer) {
    this.#uidOf = uidOf;
    this.#admins = new Set([0, process.geteuid?.() ?? 0]);
  }

  /** Call once for each new connection. False: it is one too many, or nobody knows whose, and has to be closed. */
  admit(socket: Socket): boolean {
    let uid: number;
    try {
      uid = this.#uidOf(socket);
    } catch {
      return false;
    }
    this.#uids.set(socket, uid);
    if (this.#admins.has(uid)) return true;
    const others = [...this.#readers.values()].reduce((sum, { connections }) => sum + connections, 0);
    const reader = this.#readers.get(uid) ?? { connections: 0, requests: 0, windowStart: performance.now() };
    if (others >= MOST_READER_CONNECTIONS || reader.connections >= MOST_CONNECTIONS_EACH) return false;
    reader.connections += 1;
    this.#readers.set(uid, reader);
    socket.once('close', () => {
      reader.connections -= 1;
      this.#forgetIdle();
    });
    return true;
  }

  /** Of a connection that was admitted. */
  roleOf(socket: Socket): Role {
    const uid = this.#uids.get(socket);
    return uid !== undefined && this.#admins.has(uid) ? 'admin' : 'reader';
  }

  /** Counts a request; false: it is one too many. */
  allows(socket: Socket): boolean {
    const reader = this.#readers.get(this.#uids.get(socket) ?? -1);
    if (reader === undefined) return this.roleOf(socket) === 'admin';
    const now = performance.now();
    if (now - reader.windowStart >= WINDOW_MS) Object.assign(reader, { requests: 0, windowStart: now });
    reader.requests += 1;
    return reader.requests <= MOST_REQUESTS_EACH;
  }

  /** A reader that left keeps its count until the window is over: connecting anew is no way around it. */
  #forgetIdle(): void {
    for (const [uid, { connections, windowStart }] of this.#readers) {
      if (connections === 0 && performance.now() - windowStart >= WINDOW_MS) this.#readers.delete(uid);
    }
  }
}

/** Node shows the descriptor of an accepted connection nowhere else. */
function uidOfPeer(socket: Socket): number {
  const handle: unknown = Reflect.get(socket, '_handle');
  const fd: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'fd') : undefined;
  if (typeof fd !== 'number' || fd < 0) throw new TypeError('the connection has no descriptor');
  return peerUid(fd);
}
