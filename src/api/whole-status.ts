import { setImmediate, setTimeout } from 'node:timers/promises';
import { printable } from '../printable.js';
import type { SupervisorApi } from './status.js';

/** How long devices are looked at before whatever else is due gets its turn; one with many queues is a piece by itself. */
const PIECE_MS = 2;
/** How many times as long as it took to build a status there is no other: recoveries always have most of the time. */
const REST = 4;
/** However long a machine that stood still makes that. */
const LONGEST_REST_MS = 1_000;

/** JSON.stringify lets C1 controls pass, and a terminal may show this text; the escapes mean the same. */
export function jsonText(value: unknown): string {
  return printable(JSON.stringify(value));
}

/**
 * The status of the supervisor and all its devices as text. It is built in pieces, between which the event loop goes on,
 * so each device is as it is when its turn comes. One status is built at a time: all that ask meanwhile share the next one,
 * which is no older than his question, and however many ask, they take a fifth of the supervisor's time at most.
 */
export class WholeStatus {
  readonly #api: Pick<SupervisorApi, 'supervisorStatus' | 'deviceStatuses'>;
  /** Resolves when the next status may be begun. */
  #rested: Promise<unknown> = Promise.resolve();
  /** Wanted, and not begun. */
  #next: Promise<readonly Buffer[]> | null = null;

  constructor(api: Pick<SupervisorApi, 'supervisorStatus' | 'deviceStatuses'>) {
    this.#api = api;
  }

  /** The pieces of its text, which are shared. */
  read(): Promise<readonly Buffer[]> {
    this.#next ??= this.#begin();
    return this.#next;
  }

  async #begin(): Promise<readonly Buffer[]> {
    await this.#rested;
    this.#next = null;
    let rest: (spentMs: number) => void = () => undefined;
    this.#rested = new Promise<number>((resolve) => {
      rest = resolve;
    }).then((spentMs) => setTimeout(Math.min(REST * spentMs, LONGEST_REST_MS)));
    let spentMs = 0;
    try {
      const pieces: Buffer[] = [];
      let piece = `{"supervisor":${jsonText(this.#api.supervisorStatus())},"devices":[`;
      let begun = performance.now();
      let separator = '';
      for (const device of this.#api.deviceStatuses()) {
        piece += `${separator}${jsonText(device)}`;
        separator = ',';
        const elapsed = performance.now() - begun;
        if (elapsed < PIECE_MS) continue;
        pieces.push(Buffer.from(piece));
        piece = '';
        spentMs += performance.now() - begun;
        await setImmediate();
        begun = performance.now();
      }
      pieces.push(Buffer.from(`${piece}]}\n`));
      spentMs += performance.now() - begun;
      return pieces;
    } finally {
      rest(spentMs);
    }
  }
}
