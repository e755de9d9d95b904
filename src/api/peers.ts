import type { Socket } from 'node:net';
import { peerOf, type Peer } from '../native/addon/accounts.js';

/** Readers together get half of the server's connections, so that there is always room for an administrator. */
const MOST_READER_CONNECTIONS = 32;
/** How many connections one reader may have, so that there is room for another. */
const MOST_CONNECTIONS_EACH = 8;
const MOST_REQUESTS_EACH = 50;
const WINDOW_MS = 1_000;

/**
 * An administrator may do everything, a reader look. Nobody is who has an administrator's uid without the capability that
 * makes it one: a queue process, or root in a container.
 */
export type Role = 'admin' | 'reader' | 'nobody';

/** What is counted of a reader's uid for as long as it is connected. */
interface Reader {
  connections: number;
  /** Since `windowStart`. */
  requests: number;
  windowStart: number;
}

/**
 * Who is at the other end of the control socket's connections, and how much of it they may have. A user that can connect and
 * is neither root nor the supervisor's own user got in by the socket's group, and is a reader.
 */
export class Peers {
  readonly #identify: (socket: Socket) => Peer;
  readonly #admins: ReadonlySet<number>;
  readonly #peers = new WeakMap<Socket, Peer>();
  readonly #readers = new Map<number, Reader>();

  /** `identify` throws where it does not know. */
  constructor(identify: (socket: Socket) => Peer = peerOfSocket) {
    this.#identify = identify;
    this.#admins = new Set([0, process.geteuid?.() ?? 0]);
  }

  /** Call once for each new connection. False: the connection has to be closed, because it is one too many or its user is not known. */
  admit(socket: Socket): boolean {
    let peer: Peer;
    try {
      peer = this.#identify(socket);
    } catch {
      return false;
    }
    this.#peers.set(socket, peer);
    if (this.roleOf(socket) === 'admin') return true;
    const { uid } = peer;
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

  /** What the user of an admitted connection may do. */
  roleOf(socket: Socket): Role {
    const peer = this.#peers.get(socket);
    if (peer === undefined) return 'nobody';
    if (!this.#admins.has(peer.uid)) return 'reader';
    return peer.administrates ? 'admin' : 'nobody';
  }

  /** Counts a request; false: it is one too many. */
  allows(socket: Socket): boolean {
    if (this.roleOf(socket) === 'admin') return true;
    const reader = this.#readers.get(this.#peers.get(socket)?.uid ?? -1);
    if (reader === undefined) return false;
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
function peerOfSocket(socket: Socket): Peer {
  const handle: unknown = Reflect.get(socket, '_handle');
  const fd: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'fd') : undefined;
  if (typeof fd !== 'number' || fd < 0) throw new TypeError('the connection has no descriptor');
  return peerOf(fd);
}
