import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SupervisorError } from '../../errors.js';
import { openMessageChannel, type MessageChannel } from '../../native/addon/message-channel.js';
import { seqpacketPair } from '../../native/addon/system.js';
import { programPath } from '../../package-root.js';
import {
  packed,
  unpacked,
  type DescribedStore,
  type StoreAnswer,
  type StoreRequest,
} from '../../store-proc/messages.js';

/** So many file systems can hang at once before others wait for them. */
const THREADS = 128;
/** How often it is asked for a sign of life while something else is wanted of it. */
const PING_MS = 2000;
/** So many may be unanswered: it only passes on what its threads do. Counted, because a supervisor that is busy asks late. */
const MOST_SILENT = 5;
/** Until it has said something it is a node that starts; for that a busy machine takes many seconds. */
const MOST_SILENT_FIRST = 60;
/** How long a killed one is waited for: it may have threads that wait for a file system. */
const END_DEADLINE_MS = 1000;

export interface Performed {
  readonly described: DescribedStore | null;
  /** The backend's files, parked; the receiver's to close. */
  readonly parked: number | null;
}

interface Pending {
  readonly resolve: (performed: Performed) => void;
  readonly reject: (error: SupervisorError) => void;
}

/** A process that opens stores, from its start to its end. What it was asked for then rejects with `LOST`. */
export class StoreProcess {
  readonly #child: ChildProcess;
  readonly #channel: MessageChannel;
  readonly #pending = new Map<number, Pending>();
  readonly #ended: Promise<void>;
  #lastSequence = 0;
  #lost: SupervisorError | null = null;
  /** So often it was asked for a sign of life since it gave one. */
  #silent = 0;
  #mostSilent = MOST_SILENT_FIRST;
  #pings: NodeJS.Timeout | undefined;

  constructor() {
    const [ours, theirs] = seqpacketPair();
    this.#channel = openMessageChannel(
      ours,
      (bytes, [parked = null]) => this.#answered(unpacked(bytes) as StoreAnswer, parked),
      () => this.#lose('it ended'),
    );
    this.#child = spawn(process.execPath, [programPath('store-proc')], {
      stdio: ['ignore', 'ignore', 'inherit', theirs],
      env: { UV_THREADPOOL_SIZE: String(THREADS) },
      // Not in our process group: a terminal's Ctrl-C is for the supervisor.
      detached: true,
    });
    closeSync(theirs);
    this.#ended = new Promise((resolve) => {
      this.#child.once('error', (error) => {
        this.#lose(error.message);
        resolve();
      });
      this.#child.once('exit', () => resolve());
    });
  }

  /** false: ask another one. */
  get alive(): boolean {
    return this.#lost === null;
  }

  /** `parked`: files for it; they stay the caller's. */
  perform(request: Omit<StoreRequest, 'sequence'>, parked: readonly number[]): Promise<Performed> {
    if (this.#lost !== null) return Promise.reject(this.#lost);
    this.#lastSequence += 1;
    const sequence = this.#lastSequence;
    return new Promise<Performed>((resolve, reject) => {
      this.#pending.set(sequence, { resolve, reject });
      this.#channel.send(packed({ ...request, sequence }), parked);
      if (this.#pending.size === 1) this.#watch();
    });
  }

  /** Closes parked files, which are the caller's no longer: it may be the last that has them. */
  letGo(parked: readonly number[]): void {
    this.#channel.send(packed({ sequence: 0 }), parked);
    for (const socket of parked) closeSync(socket);
  }

  /** Resolves when it is gone, or will be as soon as its threads do not wait any longer. */
  async close(): Promise<void> {
    this.#lose('it is closed');
    await Promise.race([this.#ended, sleep(END_DEADLINE_MS, undefined, { ref: false })]);
    this.#child.unref();
  }

  #answered({ sequence, described, error }: StoreAnswer, parked: number | null): void {
    this.#silent = 0;
    this.#mostSilent = MOST_SILENT;
    const pending = this.#pending.get(sequence);
    if (pending === undefined) return;
    this.#pending.delete(sequence);
    if (this.#pending.size === 0) clearInterval(this.#pings);
    if (error === null) pending.resolve({ described, parked });
    else {
      const { message, code, errno, device } = error;
      const place = { errno: errno ?? undefined, device: device ?? undefined };
      pending.reject(new SupervisorError(message, { code, ...place }));
    }
  }

  #watch(): void {
    this.#silent = 0;
    this.#pings = setInterval(() => {
      if (this.#silent === this.#mostSilent) this.#lose('it gives no sign of life');
      else this.#channel.send(packed({ sequence: 0 }), []);
      this.#silent += 1;
    }, PING_MS);
  }

  #lose(reason: string): void {
    if (this.#lost !== null) return;
    const lost = new SupervisorError(`the process that opens stores is gone: ${reason}`, { code: 'LOST' });
    this.#lost = lost;
    clearInterval(this.#pings);
    this.#child.kill('SIGKILL');
    this.#channel.close();
    for (const { reject } of this.#pending.values()) reject(lost);
    this.#pending.clear();
  }
}
