/** Looks that are due within so long of each other are made in one turn. */
const GAP_MS = 50;
/** First looks are spread over as many parts of their interval. */
const PHASES = 16;

interface Watched {
  readonly everyMs: number;
  readonly look: () => void;
  due: number;
}

/**
 * Looks at many things again and again, each in its interval, with one timer. Looks that begin together, as after an
 * adoption, are spread over their interval and stay so, so that none waits for all the others.
 */
export class Rounds {
  readonly #now: () => number;
  readonly #watched = new Set<Watched>();
  #begun = 0;
  #timer: NodeJS.Timeout | null = null;

  /** `now`: milliseconds of a monotonic clock. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Returns how to end it. The process may end meanwhile. */
  watch(everyMs: number, look: () => void): () => void {
    const phase = 1 - (this.#begun++ % PHASES) / PHASES;
    const watched: Watched = { everyMs, look, due: this.#now() + everyMs * phase };
    this.#watched.add(watched);
    this.#schedule();
    return () => {
      this.#watched.delete(watched);
    };
  }

  #turn(): void {
    const now = this.#now();
    for (const watched of this.#watched) {
      if (watched.due > now) continue;
      // Whole intervals, also after a standstill: else all would be due together from then on.
      watched.due += watched.everyMs * Math.ceil((now - watched.due + 1) / watched.everyMs);
      watched.look();
    }
    this.#timer = null;
    this.#schedule();
  }

  #schedule(): void {
    if (this.#timer !== null || this.#watched.size === 0) return;
    this.#timer = setTimeout(() => {
      this.#turn();
    }, GAP_MS).unref();
  }
}
