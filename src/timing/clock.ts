import { setTimeout } from 'node:timers/promises';

/** Time as the supervisor sees it; injected so that tests do not wait. */
export interface Clock {
  /** Milliseconds, monotonic: a changed wall clock must not look like a hang or a long life. */
  now(): number;
  /** Resolves after `ms` or, earlier, when `signal` aborts. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

export const monotonicClock: Clock = {
  now: () => performance.now(),
  async sleep(ms, signal) {
    try {
      await setTimeout(ms, undefined, { signal });
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  },
};
