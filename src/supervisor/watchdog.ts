import { readFileSync } from 'node:fs';
import { QueuePhase, type OutstandingRequest, type SharedPages } from '../native/binding.js';
import { isStopped } from './processes.js';
import { describeRequest, requestStatus } from './requests.js';

/** What was seen of a generation at one moment. */
export interface Observation {
  /** Milliseconds of a monotonic clock. */
  readonly now: number;
  /** By queue: what its backend has had longest. */
  readonly oldest: readonly (OutstandingRequest | null)[];
  /** Requests answered so far, in all queues. */
  readonly answered: number;
  /** Reads and writes that the block layer waits for, taken or not; 0 while not every queue process has fetched. */
  readonly waiting: number;
  /** Queues whose process is stopped. */
  readonly stopped: readonly number[];
}

export interface Hang {
  readonly queue: number;
  readonly reason: string;
}

/**
 * Tells a generation that hangs from one that is slow. A request is overdue when its backend has had it longer than the
 * time-out; a generation is silent when the block layer waits and nobody answers anything for as long, as when a process
 * is stopped or spins. What a process that is stopped as long keeps waiting is not known: nobody counts flushes. Each has
 * to be seen twice: after the machine, or we, stood still everybody gets a moment.
 */
export class HangDetector {
  readonly #timeoutMs: number;
  readonly #intervalMs: number;
  #last: Observation | null = null;
  #overdue: ReadonlySet<number> = new Set();
  #silentMs = 0;
  /** By queue. */
  #stoppedMs: ReadonlyMap<number, number> = new Map();

  /** `intervalMs`: how far two observations are apart when nothing stands still. */
  constructor(timeoutMs: number, intervalMs: number) {
    this.#timeoutMs = timeoutMs;
    this.#intervalMs = intervalMs;
  }

  observe(seen: Observation): Hang | null {
    const earlier = this.#overdue;
    const overdue = seen.oldest.flatMap((request, queue) =>
      request !== null && request.ageMs > this.#timeoutMs ? [{ queue, request }] : [],
    );
    this.#overdue = new Set(overdue.map(({ queue }) => queue));
    const elapsed = this.#last === null ? 0 : Math.min(seen.now - this.#last.now, 2 * this.#intervalMs);
    const waited = seen.waiting > 0 && this.#last !== null && this.#last.waiting > 0;
    const silent = waited && seen.answered === this.#last?.answered;
    this.#silentMs = silent ? this.#silentMs + elapsed : 0;
    this.#last = seen;
    this.#stoppedMs = new Map(seen.stopped.map((queue) => [queue, (this.#stoppedMs.get(queue) ?? -elapsed) + elapsed]));
    const stuck = overdue.find(({ queue }) => earlier.has(queue));
    if (stuck !== undefined) return { queue: stuck.queue, reason: describe(stuck.request, stuck.request.ageMs) };
    if (this.#silentMs <= this.#timeoutMs) return this.#longStopped();
    const queue = seen.oldest.findIndex((request) => request !== null);
    const request = seen.oldest[queue];
    // It waited before it was taken, maybe since the silence began.
    if (request) return { queue, reason: describe(request, Math.max(request.ageMs, this.#silentMs)) };
    const seconds = (this.#silentMs / 1000).toFixed(1);
    return { queue: 0, reason: `requests wait and none was taken for ${seconds} s` };
  }

  #longStopped(): Hang | null {
    for (const [queue, stoppedMs] of this.#stoppedMs) {
      if (stoppedMs <= this.#timeoutMs) continue;
      return {
        queue,
        reason: `it has been stopped, by a signal or a debugger, for ${(stoppedMs / 1000).toFixed(1)} s`,
      };
    }
    return null;
  }
}

function describe(request: OutstandingRequest, waitedMs: number): string {
  return `a ${describeRequest(requestStatus(request))} is unanswered after ${(waitedMs / 1000).toFixed(1)} s`;
}

/**
 * Looks at a generation again and again until it hangs or is no longer watched. Returns how to stop. One that has not
 * fetched owes nobody an answer, and may boot node for longer than the time-out; the command that waits for its FETCHes
 * has a deadline of its own.
 */
export function watchForHangs(options: {
  readonly deviceId: number;
  readonly pids: readonly number[];
  readonly pages: SharedPages;
  readonly timeoutMs: number;
  readonly onHang: (hang: Hang) => void;
}): () => void {
  const { deviceId, pids, pages, timeoutMs, onHang } = options;
  const intervalMs = Math.min(1000, timeoutMs / 4);
  const detector = new HangDetector(timeoutMs, intervalMs);
  const indices = [...pids.keys()];
  const timer = setInterval(() => {
    const states = indices.map((queue) => pages.readQueue(queue));
    const answered = states.flatMap(({ operations }) => operations).reduce((total, { count }) => total + count, 0);
    const waiting = states.every(({ phase }) => phase >= QueuePhase.fetched) ? waitingFor(deviceId) : 0;
    const oldest = indices.map((queue) => pages.oldestRequest(queue));
    const stopped = indices.filter((queue) => isStopped(pids[queue] ?? 0));
    const hang = detector.observe({ now: performance.now(), oldest, answered, waiting, stopped });
    if (hang === null) return;
    clearInterval(timer);
    onHang(hang);
  }, intervalMs);
  timer.unref();
  return () => {
    clearInterval(timer);
  };
}

/** Reads and writes that the block layer has handed to the driver; 0 before there is a block device. */
function waitingFor(deviceId: number): number {
  try {
    const counts = readFileSync(`/sys/block/ublkb${String(deviceId)}/inflight`, 'utf8')
      .trim()
      .split(/\s+/);
    return counts.reduce((total, count) => total + Number(count), 0);
  } catch {
    return 0;
  }
}
