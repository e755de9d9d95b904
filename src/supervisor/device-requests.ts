import type { SupervisorError } from '../errors.js';

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: SupervisorError) => void;
}

interface StopRequest extends Waiter {
  readonly force: boolean;
}

/** Who waits for what of one device. Every request is settled by the device's resting in some state. */
export class DeviceRequests {
  #live: Waiter[] = [];
  readonly #stops: StopRequest[] = [];

  get stopPending(): boolean {
    return this.#stops.length > 0;
  }

  /** Of the stop that is or comes first under way. */
  get force(): boolean {
    return this.#stops[0]?.force ?? false;
  }

  untilLive(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#live.push({ resolve, reject });
    });
  }

  untilGone(force: boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#stops.push({ force, resolve, reject });
    });
  }

  live(): void {
    for (const waiter of this.#live.splice(0)) waiter.resolve();
  }

  notLive(error: SupervisorError): void {
    for (const waiter of this.#live.splice(0)) waiter.reject(error);
  }

  stopRefused(error: SupervisorError): void {
    this.#stops.shift()?.reject(error);
  }

  gone(): void {
    for (const stop of this.#stops.splice(0)) stop.resolve();
  }
}
