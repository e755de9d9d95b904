import type { Announced } from '../load.js';
import type { Request } from './messages.js';

/** What answers a test device's requests: worker threads, or the kernel's block device. */
export interface Disk {
  readonly announced: Announced;
  /** Whether a request reaches the queue that it names. Else the kernel chooses, and messages name no queue. */
  readonly choosesQueue: boolean;
  /** Resolves with what a read left in its buffer. Rejects with what is wrong with how the request was answered. */
  call(queue: number, request: Request): Promise<Uint8Array>;
  /** Rejects if a buffer changed after its call had settled. */
  inspect(): Promise<void>;
  /** As when a device stops; `underWay` settles when the requests are answered that were under way as that began. */
  close(underWay: Promise<void>): Promise<void>;
  /** As when queue processes crash, or opened again after it was closed: new instances take over. */
  replace(): Promise<void>;
  /** After something failed: nothing is under way any more. */
  reset(): Promise<void>;
  /** Leaves nothing behind. */
  end(): Promise<void>;
}

/** Throws if one instance announces something else than another. */
export function assertSame(one: Announced, other: Announced): void {
  if (JSON.stringify(one) === JSON.stringify(other)) return;
  throw new Error(`instances differ: one is ${JSON.stringify(one)}, another one ${JSON.stringify(other)}`);
}
