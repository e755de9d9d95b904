import { SupervisorError } from '../../../../src/errors.js';
import type { Generation, Remains } from '../../../../src/supervisor/ublk/kernel.js';
import type { ExitStatus, GenerationPhase } from '../../../../src/api/status.js';

/** Queue processes of the model kernel: tests let them die, hang in uninterruptible sleep or linger. */
export class ModelGeneration implements Generation {
  readonly number: number;
  readonly pids: readonly number[];
  readonly exited: AbortSignal;
  readonly alive: Set<number>;
  readonly allExited: Promise<void>;
  /** What they do next; `phase()` is how far they came. */
  reached: GenerationPhase = 'preparing';
  killable = true;
  /** What it leaves when it dies. */
  left: Partial<Remains> = {};
  stalled: string | null = null;
  /** Its backend finishes nothing. */
  stubborn = false;
  readonly #controller = new AbortController();
  readonly #onExit: () => void;
  #killed = false;
  #noneLeft: () => void = () => undefined;

  constructor(number: number, queues: number, onExit: () => void) {
    this.number = number;
    this.pids = Array.from({ length: queues }, (_, queue) => number * 100 + queue);
    this.alive = new Set(this.pids.keys());
    this.exited = this.#controller.signal;
    this.allExited = new Promise((resolve) => {
      this.#noneLeft = resolve;
    });
    this.#onExit = onExit;
  }

  phase(): GenerationPhase {
    return this.reached;
  }

  remains(): Remains {
    const answered = { read: 0, write: 0, flush: 0, discard: 0, writeZeroes: 0 };
    const nothing = {
      died: [0],
      hung: null,
      phase: this.reached,
      outstanding: [],
      marked: [],
      answered,
      lastAnswerMs: null,
    };
    return { ...nothing, ...this.left };
  }

  exit(
    queue: number,
    how: Pick<ExitStatus, 'code' | 'signal'> & Partial<ExitStatus> = { code: null, signal: 'SIGKILL' },
  ): void {
    if (!this.alive.delete(queue)) return;
    const pid = this.pids[queue] ?? 0;
    this.#onExit();
    if (this.alive.size === 0) this.#noneLeft();
    this.#controller.abort({
      queue,
      pid,
      reason: null,
      stack: null,
      at: '2026-01-01T00:00:00.000Z',
      ...how,
    } satisfies ExitStatus);
  }

  /** The uninterruptible sleep ends, and a SIGKILL that came meanwhile is obeyed. */
  thaw(): void {
    this.killable = true;
    if (this.#killed) for (const queue of [...this.alive]) this.exit(queue);
  }

  async drain(): Promise<void> {
    await Promise.resolve();
    if (this.stubborn || !this.killable) return;
    for (const queue of [...this.alive]) this.exit(queue, { code: 0, signal: null });
  }

  async kill(): Promise<void> {
    await Promise.resolve();
    this.#killed = true;
    if (this.alive.size === 0) return;
    if (!this.killable) throw new SupervisorError('ending queue processes failed: uninterruptible', { code: 'STUCK' });
    for (const queue of [...this.alive]) this.exit(queue);
  }
}
