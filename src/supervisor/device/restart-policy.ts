const SHORT_LIFE_MS = 1000;
const FIRST_DELAY_MS = 10;
const LONGEST_DELAY_MS = 5000;

export interface RestartLimit {
  /** At most this many restarts within `windowMs`. 0: never restart. */
  readonly maxRestarts: number;
  readonly windowMs: number;
}

/** When a device whose generation ended may have its next one. */
export class RestartPolicy {
  readonly #limit: RestartLimit;
  readonly #now: () => number;
  #restarts: number[] = [];
  #shortLives = 0;

  /** @param now milliseconds of a monotonic clock */
  constructor(limit: RestartLimit, now: () => number) {
    this.#limit = limit;
    this.#now = now;
  }

  /**
   * Milliseconds to wait before the next restart, which counts from now on; undefined when the limit is reached.
   * The first restart is immediate; while generations die young the delay doubles.
   * @param livedMs how long the generation that ended had served; 0 when it never did
   */
  next(livedMs: number): number | undefined {
    const now = this.#now();
    this.#restarts = this.#restarts.filter((at) => now - at < this.#limit.windowMs);
    if (this.#restarts.length >= this.#limit.maxRestarts) return undefined;
    this.#restarts.push(now);
    if (livedMs >= SHORT_LIFE_MS) this.#shortLives = 0;
    const delay = this.#shortLives === 0 ? 0 : FIRST_DELAY_MS * 2 ** (this.#shortLives - 1);
    this.#shortLives += 1;
    return Math.min(delay, LONGEST_DELAY_MS);
  }

  /** Forgets every restart, as if the device were new. */
  reset(): void {
    this.#restarts = [];
    this.#shortLives = 0;
  }
}
