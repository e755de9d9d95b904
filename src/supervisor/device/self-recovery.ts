import { messageOf } from '../../errors.js';
import type { DeviceState } from '../../api/status.js';
import type { Log } from '../../log/log.js';
import type { Clock } from '../../timing/clock.js';
import type { DeviceBackend } from './device-backend.js';
import type { Step, Target } from './machine.js';

/** How often what passes by itself is tried again. */
const RETRY_INTERVAL_MS = 1000;
/**
 * Codes of a recovery that fails for as long as a store does not answer, or a backend cannot be loaded. A dead process'
 * requests that are in a store keep its char device until the store has answered them.
 */
const PASSING: ReadonlySet<string | null> = new Set(['UNLOADABLE', 'EBUSY', 'TIMEOUT']);

interface SelfRecoveryOptions {
  readonly device: string;
  readonly backend: DeviceBackend;
  readonly clock: Clock;
  readonly log: Log;
  readonly state: () => DeviceState;
  /** The configuration lets the device recover by itself. */
  readonly auto: () => boolean;
  /** What `status` gives as the reason of the device's state. */
  readonly reason: () => string | null;
  readonly setReason: (reason: string | null) => void;
  /** Resolves when no process of the current generation is left. */
  readonly allExited: () => Promise<void>;
  /** Lets the device, which rests, make another attempt. */
  readonly recover: () => void;
}

/** What lets a device that rests go on without a caller: its store is there again, or what failed may succeed now. */
export class SelfRecovery {
  readonly #options: SelfRecoveryOptions;
  /** Why the device is degraded while it is tried again and again. */
  #retrying: string | null = null;
  /** The code of what made the device degraded; some of it passes by itself. */
  #degradedBy: string | null = null;
  /** The device waits for its backend, or its backend's data, to be there. */
  #lacksStore = false;

  constructor(options: SelfRecoveryOptions) {
    this.#options = options;
  }

  /** The attempts follow each other by the second: only the first one's failure is news. */
  get retries(): boolean {
    return this.#retrying !== null;
  }

  /** The device is in the state of which was told already, for the same reason. */
  get repeatsItself(): boolean {
    const { state, reason } = this.#options;
    return this.#retrying !== null && state() !== 'live' && reason() === this.#retrying;
  }

  failed(step: Step, target: Target, code: string): void {
    if (step === 'openBackend' || (step === 'checkBackend' && this.#options.state() !== 'handingOver')) {
      this.#lacksStore = true;
    }
    // A stop that was refused because of the device's users says nothing about that.
    if (target === 'degraded' || code === 'STUCK') this.#degradedBy = code;
  }

  storeIsThere(): void {
    this.#lacksStore = false;
  }

  becameLive(): void {
    this.#degradedBy = null;
    this.#lacksStore = this.#options.backend.current === null;
  }

  /** The device rests until `interrupted`. */
  rests(interrupted: AbortSignal): void {
    const { state, auto } = this.#options;
    const cause = state() === 'degraded' && auto() ? this.#degradedBy : null;
    if (PASSING.has(cause) && !this.#lacksStore) void this.#retry(interrupted);
    else this.#retrying = null;
    if (this.#lacksStore && state() !== 'gone') void this.#awaitStore(interrupted);
    if (cause === 'STUCK') void this.#recoverOnceEnded(interrupted);
  }

  /**
   * Opens the backend, or looks whether its data is there again, until it is: then the device goes on. What is served by
   * processes that an earlier supervisor left is served meanwhile.
   */
  async #awaitStore(interrupted: AbortSignal): Promise<void> {
    const { device, clock, log, state, auto, setReason, recover } = this.#options;
    let found = state() === 'live' && (await this.#findStore(interrupted));
    while (!found) {
      await clock.sleep(RETRY_INTERVAL_MS, interrupted);
      if (interrupted.aborted) return;
      found = await this.#findStore(interrupted);
    }
    if (interrupted.aborted) return;
    this.#lacksStore = false;
    if (state() === 'live') setReason(null);
    if (state() === 'live' || (state() === 'degraded' && !auto())) return;
    log.info({ device }, `the backend of device ${device} is there`);
    recover();
  }

  async #findStore(interrupted: AbortSignal): Promise<boolean> {
    const { device, backend, log, reason: known, setReason } = this.#options;
    try {
      await backend.openSoon(interrupted);
      await backend.check();
      return true;
    } catch (error) {
      const reason = messageOf(error);
      if (interrupted.aborted || reason === known()) return false;
      log.warn({ device }, `${reason}; it is tried again`);
      setReason(reason);
      return false;
    }
  }

  /** Tries to recover again and again, until that works or a caller wants something else of the device. */
  async #retry(interrupted: AbortSignal): Promise<void> {
    const { clock, state, reason, recover } = this.#options;
    await clock.sleep(RETRY_INTERVAL_MS, interrupted);
    if (interrupted.aborted || state() !== 'degraded') return;
    this.#retrying = reason();
    recover();
  }

  /** What kept a queue process in uninterruptible sleep may let go of it at any time. */
  async #recoverOnceEnded(interrupted: AbortSignal): Promise<void> {
    const { state, allExited, recover } = this.#options;
    await allExited();
    if (interrupted.aborted || state() !== 'degraded') return;
    recover();
  }
}
