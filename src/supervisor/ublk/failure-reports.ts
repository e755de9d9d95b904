import { getSystemErrorMap } from 'node:util';
import type { FailedRequests, SharedPages } from '../../native/addon/shared-pages.js';
import { describeRequest, isOperation, requestStatus } from '../../api/operations.js';

/** How long after a line about failures of one kind the next one may come. */
const QUIET_MS = 60_000;

interface Kind {
  /** So many it had when the last line was written. */
  readonly told: number;
  readonly at: number;
}

/**
 * Lines for the log about requests that failed: the first of each kind, that is of an operation and an error, at once, and how
 * many there were since then once in a while. Queue processes note them in the shared page.
 */
export class FailureReports {
  readonly #pages: Pick<SharedPages, 'failures'>;
  readonly #now: () => number;
  readonly #say: (queue: number, message: string) => void;
  /** For each queue, how many requests had failed at the last look. */
  readonly #looked: number[] = [];
  /** Queues of which there is something that was not told yet. */
  readonly #pending = new Set<number>();
  readonly #kinds = new Map<string, Kind>();

  /** What failed before is not told again. `now`: milliseconds of a monotonic clock. */
  constructor(
    pages: Pick<SharedPages, 'failures'>,
    queues: number,
    say: (queue: number, message: string) => void,
    now: () => number = () => performance.now(),
  ) {
    this.#pages = pages;
    this.#say = say;
    this.#now = now;
    for (let queue = 0; queue < queues; queue++) {
      for (const failed of pages.failures(queue)) {
        this.#kinds.set(keyOf(queue, failed), { told: failed.count, at: -Infinity });
      }
    }
  }

  /** `failed`: by queue, how many requests have failed so far. */
  look(failed: readonly number[]): void {
    for (const [queue, count] of failed.entries()) {
      if (count === (this.#looked[queue] ?? 0) && !this.#pending.has(queue)) continue;
      this.#looked[queue] = count;
      this.#pending.delete(queue);
      for (const kind of this.#pages.failures(queue)) this.#tell(queue, kind);
    }
  }

  #tell(queue: number, failed: FailedRequests): void {
    // Whatever a queue process put there, so that there is an end to kinds.
    if (!isKnown(failed)) return;
    const key = keyOf(queue, failed);
    const last = this.#kinds.get(key);
    // Fewer than before: its entry was another kind's meanwhile.
    const more = last === undefined || failed.count < last.told ? failed.count : failed.count - last.told;
    if (more === 0) return;
    const now = this.#now();
    if (last !== undefined && now - last.at < QUIET_MS) {
      this.#pending.add(queue);
      return;
    }
    const others = more === 1 ? '' : `, and ${more - 1} before it`;
    this.#say(queue, `a ${describeRequest(requestStatus(failed))} failed: ${reasonOf(failed.error)}${others}`);
    this.#kinds.set(key, { told: failed.count, at: now });
  }
}

function keyOf(queue: number, { operation, error }: FailedRequests): string {
  return `${queue} ${operation} ${error}`;
}

function reasonOf(errno: number): string {
  const [name, text] = getSystemErrorMap().get(-errno) ?? ['EIO', 'i/o error'];
  return `${text} (${name})`;
}

function isKnown({ operation, error }: FailedRequests): boolean {
  return isOperation(operation) && getSystemErrorMap().has(-error);
}
