import type { SupervisorError } from '../../errors.js';
import type { HandOver } from './hand-over.js';

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: SupervisorError) => void;
}

/** A wait that the death of the device's own processes may interrupt. */
interface Repeatable extends Waiter {
  interruptions: number;
}

interface StopRequest extends Repeatable {
  readonly force: boolean;
}

interface HandOverRequest extends Repeatable {
  readonly next: HandOver;
}

const MOST_INTERRUPTIONS = 3;

/** The callers that wait for one device. Each wait is settled when the device comes to rest in some state. */
export class Waiters {
  #live: Waiter[] = [];
  readonly #stops: StopRequest[] = [];
  readonly #handOvers: HandOverRequest[] = [];
  /** Hand-overs that failed, to be told so when the device rests again. */
  readonly #failed: (() => void)[] = [];

  get stopPending(): boolean {
    return this.#stops.length > 0;
  }

  /** Whether the stop that is under way, or comes next, is forced. */
  get force(): boolean {
    return this.#stops[0]?.force ?? false;
  }

  /** The hand-over that is or comes first under way. */
  get handOver(): HandOver | null {
    return this.#handOvers[0]?.next ?? null;
  }

  untilLive(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#live.push({ resolve, reject });
    });
  }

  untilGone(force: boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#stops.push({ force, resolve, reject, interruptions: 0 });
    });
  }

  untilHandedOver(next: HandOver): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#handOvers.push({ next, resolve, reject, interruptions: 0 });
    });
  }

  /** Whether the stop under way, which a death interrupted, is to be tried again after the recovery. */
  stopAgain(): boolean {
    return again(this.#stops[0]);
  }

  /** Whether the hand-over that a death interrupted is to be tried again after the recovery. */
  handOverAgain(): boolean {
    return again(this.#handOvers[0]);
  }

  handedOver(): void {
    this.#handOvers.shift()?.resolve();
  }

  handOverFailed(error: SupervisorError): void {
    const request = this.#handOvers.shift();
    if (request === undefined) return;
    this.#failed.push(() => request.reject(error));
  }

  rests(): void {
    for (const reject of this.#failed.splice(0)) reject();
  }

  /** The device cannot be served any more, so nothing can be handed over. */
  handOversRefused(error: SupervisorError): void {
    for (const request of this.#handOvers.splice(0)) request.reject(error);
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

function again(request: Repeatable | undefined): boolean {
  if (request === undefined) return false;
  request.interruptions += 1;
  return request.interruptions <= MOST_INTERRUPTIONS;
}
