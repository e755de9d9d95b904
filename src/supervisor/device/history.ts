import type { BackendErrorStatus, ExitStatus } from '../../api/status.js';

export function describeExit({ queue, pid, code, signal, reason }: ExitStatus): string {
  return `queue process ${queue} (pid ${pid}) ${howOf(code, signal)}${reason === null ? '' : `: ${reason}`}`;
}

/** Neither is known when its parent, the zygote, has not told or is gone itself. */
function howOf(code: number | null, signal: string | null): string {
  if (signal !== null) return `was killed by ${signal}`;
  return code === null ? 'ended' : `exited with code ${code}`;
}

/** What `status` tells of a device's generations, and how long the last one served. */
export class DeviceHistory {
  readonly #now: () => number;
  #liveAt = 0;
  #exitedAt = 0;
  #recoveries = 0;
  #lastExit: ExitStatus | null = null;
  #lastBackendError: BackendErrorStatus | null = null;
  #lastPauseMs: number | null = null;

  /** @param now milliseconds of a monotonic clock */
  constructor(now: () => number) {
    this.#now = now;
  }

  get recoveries(): number {
    return this.#recoveries;
  }

  get lastExit(): ExitStatus | null {
    return this.#lastExit;
  }

  get lastBackendError(): BackendErrorStatus | null {
    return this.#lastBackendError;
  }

  get lastPauseMs(): number | null {
    return this.#lastPauseMs;
  }

  get servedMs(): number {
    return this.#exitedAt - this.#liveAt;
  }

  /** A queue process ended; `serving`: the device was live until then. */
  exited(status: ExitStatus, serving: boolean): void {
    this.#lastExit = status;
    if (serving) this.#exitedAt = this.#now();
  }

  /** The device hands over: its users wait from now on. */
  paused(): void {
    this.#exitedAt = this.#now();
  }

  failedRequest(error: BackendErrorStatus): void {
    this.#lastBackendError = error;
  }

  started(): void {
    this.#liveAt = this.#now();
  }

  /** Returns how long the pause was, in milliseconds. */
  handedOver(): number {
    this.#liveAt = this.#now();
    this.#lastPauseMs = this.#liveAt - this.#exitedAt;
    return this.#lastPauseMs;
  }

  /** Returns how long the pause was, in milliseconds. */
  recovered(): number {
    this.#recoveries += 1;
    return this.handedOver();
  }
}
