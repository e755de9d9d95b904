import type { MessagePort } from 'node:worker_threads';
import type { BackendInput } from '../../../backends/interface.js';
import type { Announced } from '../load.js';
import type { GivenLower } from './shared-lower.js';

/** What the suite and the worker thread that stands for a queue process tell each other. */

export interface WorkerOptions {
  /** Absolute path of the backend's module. */
  readonly module: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly queue: number;
  readonly queues: number;
  /** Takes a `MemoryRequest` and answers with a SharedArrayBuffer; `answered` then wakes the thread. */
  readonly memory: MessagePort;
  readonly answered: Int32Array;
}

export interface MemoryRequest {
  readonly name: string;
  readonly size: number;
}

/** A method of a backend's instance; offsets and lengths are bytes. */
export type Call =
  | { readonly method: 'read'; readonly offset: number; readonly length: number }
  | { readonly method: 'write'; readonly offset: number; readonly data: Uint8Array; readonly fua: boolean }
  | { readonly method: 'discard'; readonly offset: number; readonly length: number }
  | { readonly method: 'writeZeroes'; readonly offset: number; readonly length: number; readonly mayUnmap: boolean }
  | { readonly method: 'flush' }
  | { readonly method: 'close' };

/** What a client of a device can cause. */
export type Request = Exclude<Call, { readonly method: 'close' }>;

export type ToWorker =
  | { readonly type: 'call'; readonly id: number; readonly call: Call }
  /** Settles with a fault if a buffer changed after its call had settled. */
  | { readonly type: 'inspect'; readonly id: number }
  | { readonly type: 'drain' }
  /** What the backend asked for; its files are open in this process. */
  | ({ readonly type: 'lower'; readonly id: number } & GivenLower)
  | { readonly type: 'no-lower'; readonly id: number; readonly reason: string };

export type FromWorker =
  | { readonly type: 'opened'; readonly announced: Announced }
  | { readonly type: 'refused'; readonly reason: string }
  /** Its backend wants that below it. */
  | { readonly type: 'wants'; readonly id: number; readonly asked: BackendInput }
  /** `fault`: what is wrong with the answer, or what was thrown. `data`: what a read left in its buffer. */
  | { readonly type: 'settled'; readonly id: number; readonly fault?: string; readonly data?: Uint8Array };

/** A buffer's bytes before a read fills it. */
export const UNFILLED = 0xb5;
/** A buffer's bytes once its call has settled. */
export const SETTLED = 0xd7;

/** `write of 4096 bytes at 8192`. */
export function describeCall(call: Call): string {
  if (!('offset' in call)) return call.method;
  const length = 'data' in call ? call.data.length : call.length;
  const fua = 'fua' in call && call.fua ? ' with FUA' : '';
  return `${call.method}${fua} of ${length} bytes at ${call.offset}`;
}
