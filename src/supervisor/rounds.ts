/** Looks that are due within so long of each other are made in one turn. */
const GAP_MS = 50;
/** Looks are spread over as many moments of their interval, which those of the same interval share. */
const PHASES = 8;

interface Watched {
  readonly everyMs: number;
  readonly look: () => void;
  due: number;
}

/**
 * Looks at many things again and again, each in its interval, with one timer. They are spread over their interval, so that
 * none waits for all the others, but only over a few moments of it: each time that we wake costs as much as a few looks.
 */
export class Rounds {
  readonly #now: () => number;
  readonly #watched = new Set<Watched>();
  #begun = 0;
  #timer: NodeJS.Timeout | null = null;
  /** When the timer fires. */
  #next = Infinity;

  /** `now`: milliseconds of a monotonic clock. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Returns how to end it. The process may end meanwhile. */
  watch(everyMs: number, look: () => void): () => void {
    const partMs = everyMs / PHASES;
    const part = Math.ceil(this.#now() / partMs) + PHASES - 1 - (this.#begun++ % PHASES);
    const watched: Watched = { everyMs, look, due: part * partMs };
    this.#watched.add(watched);
    this.#wake(watched.due);
    return () => {
      this.#watched.delete(watched);
    };
  }

  #turn(): void {
    const now = this.#now();
    this.#next = Infinity;
    for (const watched of this.#watched) {
      if (watched.due > now) continue;
      // Whole intervals, also after a standstill: else all would be due together from then on.
      watched.due += watched.everyMs * Math.ceil((now - watched.due + 1) / watched.everyMs);
      watched.look();
    }
    let first = Infinity;
    for (const { due } of this.#watched) first = Math.min(first, due);
    if (first !== Infinity) this.#wake(first);
  }

  /** No later than at `due`. */
  #wake(due: number): void {
    if (due >= this.#next) return;
    this.#next = due;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(
      () => {
        this.#turn();
      },
      Math.max(GAP_MS, due - this.#now()),
    ).unref();
  }
}
