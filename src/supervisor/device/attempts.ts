import type { RecoveryConfig } from '../../config/types.js';
import type { Clock } from '../../timing/clock.js';
import { RestartPolicy } from './restart-policy.js';

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
