import { SAME_USER, type User } from './accounts.js';
import { loadAddon, translated } from './load.js';

/** What a queue process with a JavaScript backend is for. */
export interface InheritedQueue {
  readonly deviceId: number;
  readonly queue: number;
  readonly queues: number;
  readonly depth: number;
  readonly maxIoBytes: number;
  readonly size: number;
  /** fd of a stream socket to the supervisor. */
  readonly channel: number;
  /**
   * fds: of the file that the device's shared memory is in, then of the sockets that the files of what is below the backend are
   * parked in.
   */
  readonly files: readonly number[];
}

interface NativeJsQueue {
  readonly buffers: ArrayBuffer;
  readonly requests: ArrayBuffer;
  readonly offsets: ArrayBuffer;
  readonly answers: ArrayBuffer;
  readonly progress: ArrayBuffer;
  start(): void;
  answer(count: number): void;
}

/** The queue of a process with a JavaScript backend; js_queue.cpp says what the arrays hold. */
export interface JsQueue {
  readonly buffers: ArrayBuffer;
  readonly requests: Int32Array;
  readonly offsets: Float64Array;
  readonly answers: Int32Array;
  /** One number, which the supervisor sees; another one is a sign of life. */
  readonly progress: Int32Array;
  /** Waits for the device's other queue processes, then fetches. Blocks the thread meanwhile. */
  start(): void;
  /** Answers the first `count` requests of `answers`, in one system call a batch. */
  answer(count: number): void;
}

export interface QueueEvents {
  /** There are `count` requests in the arrays. */
  readonly onBatch: (count: number) => void;
  /** Nothing new comes. */
  readonly onDrain: () => void;
  /** Everything is answered, or the kernel has taken the queue back. */
  readonly onEnd: () => void;
}

interface Addon {
  dropPrivileges(uid: number, gid: number): void;
  inheritedQueue(): InheritedQueue | null;
  JsQueue: new (onBatch: (count: number) => void, onDrain: () => void, onEnd: () => void) => NativeJsQueue;
}

const addon = (): Addon => loadAddon() as Addon;

/** For good: every capability and the way to new ones, and the user if another one is given. */
export function dropPrivileges({ uid, gid }: User = { uid: SAME_USER, gid: SAME_USER }): void {
  translated(() => addon().dropPrivileges(uid, gid));
}

/** null in a process that is no queue process with a JavaScript backend. */
export function inheritedQueue(): InheritedQueue | null {
  return addon().inheritedQueue();
}

/** Call once, in a process that inherited a queue. */
export function inheritQueue({ onBatch, onDrain, onEnd }: QueueEvents): JsQueue {
  const native = translated(() => new (addon().JsQueue)(onBatch, onDrain, onEnd));
  return {
    buffers: native.buffers,
    requests: new Int32Array(native.requests),
    offsets: new Float64Array(native.offsets),
    answers: new Int32Array(native.answers),
    progress: new Int32Array(native.progress),
    start: () => translated(() => native.start()),
    answer: (count) => native.answer(count),
  };
}
