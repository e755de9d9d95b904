import type { RequestIdentity } from '../request.js';
import type { FaultChange, FaultHit, FaultInSlot } from './fault-area.js';
import { loadAddon, translated } from './load.js';

export interface SharedOperation {
  readonly count: number;
  readonly bytes: number;
  readonly errors: number;
  readonly p50ns: number;
  readonly p99ns: number;
}

/** `Phase` of shared_page.hpp. */
export const QueuePhase = { absent: 0, preparing: 1, fetching: 2, fetched: 3, released: 4 } as const;

export interface SharedQueue {
  /** One of `QueuePhase`. */
  readonly phase: number;
  readonly inflight: number;
  /** Why the process gave up by itself; 0 when it did not. */
  readonly failureErrno: number;
  readonly failureStep: string;
  /** null: this generation has not answered anything. */
  readonly sinceAnswerMs: number | null;
  /** Read, write, flush, discard, write zeroes. */
  readonly operations: readonly SharedOperation[];
}

/** A request that a backend has not answered. */
export interface OutstandingInQueue extends RequestIdentity {
  readonly ageMs: number;
  /** A fault rule keeps it from the backend. */
  readonly injected: boolean;
  /** What the queue's backend got later was answered. */
  readonly overtaken: boolean;
  /** Requests of the same operation among it. */
  readonly overtakenByItsKind: boolean;
}

/** The requests of one operation that failed with one error; the rest is of the last of them. */
export interface FailedRequests extends RequestIdentity {
  readonly error: number;
  readonly count: number;
}

/** Where each of a queue's signs of life is among its `count` numbers. */
export const SIGNS = {
  /** One of `QueuePhase`. */
  phase: 0,
  /** Another number after each turn of the queue's loop, each answer, and each part of a long one. */
  progress: 1,
  /** Requests, by all generations. */
  answered: 2,
  /** How long its backend has had what it has had longest; 0: it has nothing. */
  oldestMs: 3,
  /** Requests that failed, by all generations. */
  failed: 4,
  count: 5,
} as const;

/** What the queues are to do with a request after crashes; `Mark` of shared_page.hpp. */
export interface MarkedRequest extends RequestIdentity {
  /** true: it is answered with EIO. false: the backend has nothing else while it has this. */
  readonly refused: boolean;
  readonly crashes: number;
}

/** How many requests can be marked; `kMaxMarked` of shared_page.hpp. */
export const MOST_MARKED = 256;

/** A device's shared page; shared_page.hpp. */
export interface SharedPages {
  readonly fd: number;
  /** Only while no queue process of the device is alive. `keepsOneBack`: its last FETCH waits until all are seen alive. */
  beginGeneration(keepsOneBack: boolean): void;
  readQueue(index: number): SharedQueue;
  /** Fills in the `SIGNS` of each queue. */
  signsOfLife(into: Float64Array): void;
  /** By operation and error, of all generations. */
  failures(index: number): readonly FailedRequests[];
  /**
   * Has the loop of a queue that serves turn once, if it can. Of a backend in JavaScript that has not turned since it was
   * asked before, `stackOf` is known then.
   */
  ask(index: number): void;
  /** What JavaScript does in such a queue's process; empty where that is not known. */
  stackOf(index: number): string;
  /** All that the queue's backend has, in no order. */
  outstanding(index: number): readonly OutstandingInQueue[];
  /**
   * Replaces all marks; refused ones first. Only while no queue process of the device is alive, but for an empty list.
   */
  mark(requests: readonly MarkedRequest[]): void;
  /** What is marked, but for what has been answered since. */
  marked(): readonly MarkedRequest[];
  /** Every queue process finishes what its backend has, takes nothing new, and exits. */
  drain(): void;
  /** Gives the slot a rule, or frees it. Its counters begin again unless the rule is `kept`, changed in part. */
  setFault(slot: number, rule: FaultChange | null): void;
  /** Every rule that there is. */
  faults(): readonly FaultInSlot[];
  /** The hits of rules after number `after`, as far as they are still known. */
  faultLog(after: number): readonly FaultHit[];
}

interface Addon {
  SharedPages: new (queues: number, depth: number, memfdOrAllowsFaults: number | boolean) => SharedPages;
}

const addon = (): Addon => loadAddon() as Addon;

export function createSharedPages(queues: number, depth: number, allowsFaults: boolean): SharedPages {
  return translated(() => new (addon().SharedPages)(queues, depth, allowsFaults));
}

/** A shared page that an earlier supervisor made. Takes `memfd` over. */
export function reopenSharedPages(queues: number, depth: number, memfd: number): SharedPages {
  return translated(() => new (addon().SharedPages)(queues, depth, memfd));
}
