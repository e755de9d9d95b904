import type { RecoveryConfig } from '../../config/types.js';
import type { Clock } from '../../timing/clock.js';

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

/** Why there is no further attempt to bring a device to life; `code` is what the state machine goes by. */
export interface Exhausted {
  readonly code: 'PARKED' | 'GIVEN_UP';
  readonly reason: string;
}

/** The attempts to bring one device to life since it last rested. */
export class Attempts {
  readonly #config: RecoveryConfig;
  readonly #clock: Clock;
  readonly #policy: RestartPolicy;
  #failed = 0;
  #byHand = false;

  constructor(config: RecoveryConfig, clock: Clock) {
    const { auto, maxRestarts, windowMs } = config;
    this.#config = config;
    this.#clock = clock;
    this.#policy = new RestartPolicy({ maxRestarts: auto ? maxRestarts : 0, windowMs }, () => clock.now());
  }

  /** A caller asked for the next attempt: it neither waits nor counts as a restart. */
  askedFor(): void {
    this.#byHand = true;
  }

  failed(): void {
    this.#failed += 1;
  }

  /** The device rests; whatever ends its rest is a first attempt. */
  rested(): void {
    this.#failed = 0;
    this.#byHand = false;
  }

  forgetRestarts(): void {
    this.#policy.reset();
  }

  /** Waits until the next attempt is due, or until `signal`; null when it is, else why there is none. */
  async backOff(servedMs: number, stopPending: boolean, signal: AbortSignal): Promise<Exhausted | null> {
    const retry = this.#failed > 0;
    if (retry && stopPending) return { code: 'PARKED', reason: 'it is to be stopped' };
    const byHand = this.#byHand;
    this.#byHand = false;
    if (byHand) return null;
    const delay = this.#policy.next(retry ? 0 : servedMs);
    if (delay === undefined) return this.#exhausted();
    if (delay > 0) await this.#clock.sleep(delay, signal);
    return null;
  }

  #exhausted(): Exhausted {
    const { auto, maxRestarts, windowMs, onGiveUp } = this.#config;
    if (!auto) return { code: 'PARKED', reason: 'automatic recovery is off' };
    const reason = `the limit of ${maxRestarts} restarts in ${windowMs / 1000} s is reached`;
    return { code: onGiveUp === 'stop' ? 'GIVEN_UP' : 'PARKED', reason };
  }
}
