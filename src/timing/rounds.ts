/** Looks that are due within so long of each other are made in one turn. */
const GAP_MS = 50;
/** Looks are spread over as many moments of their interval, which those of the same interval share. */
const PHASES = 8;

interface Watched {
  readonly look: () => number;
  readonly phase: number;
  due: number;
}

/**
 * Looks at many things again and again with one timer; each look says in how many milliseconds the next one is due. They
 * are spread over their interval, so that none waits for all the others, but only over a few moments of it: each time that
 * we wake costs as much as a few looks.
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

  /** The first look comes within `firstMs`. Returns how to end it. The process may end meanwhile. */
  watch(firstMs: number, look: () => number): () => void {
    const phase = (PHASES - 1 - (this.#begun++ % PHASES)) / PHASES;
    const watched: Watched = { look, phase, due: dueAfter(this.#now(), firstMs, phase) };
    this.#watched.add(watched);
    this.#wake(watched.due);
    return () => {
      this.#watched.delete(watched);
    };
  }

  #turn(): void {
    const now = this.#now();
    this.#next = Infinity;
    let first = Infinity;
    for (const watched of this.#watched) {
      if (watched.due <= now) watched.due = dueAfter(now, watched.look(), watched.phase);
      if (this.#watched.has(watched)) first = Math.min(first, watched.due);
    }
    if (first !== Infinity) this.#wake(first);
  }

  /** No later than at `due`. */
  #wake(due: number): void {
    if (due >= this.#next) return;
    this.#next = due;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#turn(), Math.max(GAP_MS, due - this.#now())).unref();
  }
}

/** The next moment of that phase of the interval, whenever the last one was: what was missed is not made up for. */
function dueAfter(now: number, everyMs: number, phase: number): number {
  return (Math.floor(now / everyMs - phase) + 1 + phase) * everyMs;
}
