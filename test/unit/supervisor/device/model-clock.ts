import type { Clock } from '../../../../src/timing/clock.js';

/** More than anything takes that ends. */
const MOST_SLEEPS = 40;

/** Time that passes only in sleeps, which end at once unless they are `held`, or one of something that goes on for ever. */
export class ModelClock implements Clock {
  time = 1_000_000;
  held = false;
  readonly sleeps: number[] = [];
  readonly #held: ((value: unknown) => void)[] = [];

  now(): number {
    return this.time;
  }

  async sleep(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    this.sleeps.push(ms);
    if (!this.held && this.sleeps.length < MOST_SLEEPS) {
      this.time += ms;
      return;
    }
    await new Promise((resolve) => {
      signal.addEventListener('abort', resolve, { once: true });
      this.#held.push(resolve);
    });
  }

  /** Ends every sleep that is held. */
  wake(): void {
    for (const end of this.#held.splice(0)) end(undefined);
  }
}
