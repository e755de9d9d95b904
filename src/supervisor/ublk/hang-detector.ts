import { QueuePhase, SIGNS, type OutstandingInQueue, type SharedPages } from '../../native/addon/shared-pages.js';
import type { HangEvidence } from './kernel.js';
import { stateOfProcess, type ProcessState } from '../host/processes.js';
import type { Rounds } from '../../timing/rounds.js';
import { describeRequest, isFlush, requestStatus } from '../../api/operations.js';

const FIRST_LOOK_MS = 1_000;

/** What was seen of a queue at one moment. */
export interface QueueSight {
  /** The queue's process has fetched; before that it has no request to answer. */
  readonly serving: boolean;
  /** Another number after each turn of its loop, each answer, and each part of a long one. */
  readonly progress: number;
  /** Requests answered so far. */
  readonly answered: number;
  /** Its backend has requests. */
  readonly busy: boolean;
  /** What its backend has had for longer than the time-out. */
  readonly overdue: readonly OutstandingInQueue[];
  /** What its process does, which costs a look at /proc; null: it is gone. */
  readonly process: () => ProcessState | null;
}

export interface Observation {
  /** Milliseconds of a monotonic clock. */
  readonly now: number;
  /** What was seen of each queue. */
  readonly queues: readonly QueueSight[];
}

export interface Hang extends HangEvidence {
  readonly queue: number;
  readonly reason: string;
}

/** What takes longer than the time-out though no other process could do better. */
export interface Stall {
  readonly queue: number;
  readonly reason: string;
}

export interface Finding {
  /** A process that has to be replaced. */
  readonly hang: Hang | null;
  readonly stall: Stall | null;
  /** Queues that are to give a sign of life. */
  readonly ask: readonly number[];
  /** In how many milliseconds to look again. */
  readonly nextMs: number;
}

interface QueueState {
  readonly progress: number;
  readonly answered: number;
  /** For so long nothing moved. */
  readonly stillMs: number;
  /** For so long it answered nothing of what it has. */
  readonly silentMs: number;
  readonly overtaken: boolean;
  /** It has no requests, had none since it was looked at last, and owes no sign of life. */
  readonly quiet: boolean;
}

/**
 * Tells a process that hangs, so that another one would do better, from one that waits for its store.
 *
 * The loop of every queue turns when it is asked to, whatever its backend waits for. A process whose loop does not is
 * stopped, spins or is stuck, and is a hang; but not while it is in an uninterruptible sleep, which a signal does not end.
 * A native backend whose loop turns has its requests with the kernel, where no other process could hasten them, and which
 * does not let go of them when the process ends. One in JavaScript may have lost a request or its connection. It hangs
 * when it answers nothing at all for the time-out, or when a request is overdue though what came later was answered.
 *
 * What is seen once may be due to us or the machine having stood still; only what is seen again is a hang.
 */
export class HangDetector {
  readonly #timeoutMs: number;
  readonly #intervalMs: number;
  readonly #quietIntervalMs: number;
  readonly #javascript: boolean;
  #last: {
    readonly now: number;
    readonly queues: readonly (QueueState | undefined)[];
    readonly nextMs: number;
  } | null = null;

  constructor(options: { readonly timeoutMs: number; readonly javascript: boolean }) {
    const { timeoutMs } = options;
    this.#timeoutMs = timeoutMs;
    // A sixteenth of a long time-out is precise enough; and looks at what is quiet are the most of what an idle supervisor does.
    this.#intervalMs = Math.min(5000, Math.max(Math.min(1000, timeoutMs / 4), timeoutMs / 16));
    this.#quietIntervalMs = Math.max(this.#intervalMs, Math.min(15_000, timeoutMs / 4));
    this.#javascript = options.javascript;
  }

  observe({ now, queues }: Observation): Finding {
    const before = this.#last;
    const elapsed = before === null ? 0 : Math.min(now - before.now, 2 * before.nextMs);
    const states = queues.map((sight, queue) =>
      sight.serving ? this.#next(before?.queues[queue], sight, elapsed) : undefined,
    );
    const interval = states.every((state) => state?.quiet === true) ? this.#quietIntervalMs : this.#intervalMs;
    const nextMs = Math.min(interval, ...states.map((state) => this.#leftOf(state)));
    this.#last = { now, queues: states, nextMs };
    const findings = queues.flatMap((sight, queue) => {
      return this.#judge(queue, sight, states[queue], before?.queues[queue]) ?? [];
    });
    const isHang = (finding: Hang | Stall): finding is Hang => 'overtaken' in finding;
    const isDue = ({ stillMs }: QueueState): boolean => stillMs > 0 && stillMs >= this.#timeoutMs / 4;
    return {
      hang: findings.find(isHang) ?? null,
      stall: findings.find((finding) => !isHang(finding)) ?? null,
      ask: states.flatMap((state, queue) => (state !== undefined && isDue(state) ? [queue] : [])),
      nextMs,
    };
  }

  /** How long it may yet do nothing: what has passed the time-out then need not wait for one more look. */
  #leftOf(state: QueueState | undefined): number {
    if (state === undefined) return Infinity;
    const left = this.#timeoutMs - Math.max(state.stillMs, state.silentMs);
    return left < 0 ? Infinity : left + 1;
  }

  #next(before: QueueState | undefined, sight: QueueSight, elapsed: number): QueueState {
    const { progress, answered, busy, overdue } = sight;
    const still = before?.progress === progress;
    const silent = busy && before?.answered === answered;
    const stillMs = still ? before.stillMs + elapsed : 0;
    return {
      progress,
      answered,
      stillMs,
      silentMs: silent ? before.silentMs + elapsed : 0,
      overtaken: overdue.some(({ overtaken }) => overtaken),
      quiet: !busy && before?.answered === answered && stillMs < this.#timeoutMs / 2,
    };
  }

  #judge(
    queue: number,
    { process: processOf, overdue }: QueueSight,
    state: QueueState | undefined,
    before: QueueState | undefined,
  ): Hang | Stall | null {
    if (state === undefined) return null;
    const { stillMs, silentMs } = state;
    if (stillMs <= this.#timeoutMs && overdue.length === 0) return null;
    const [oldest] = [...overdue].sort((one, other) => other.ageMs - one.ageMs);
    const unanswered = oldest === undefined ? null : describe(oldest);
    const hang = (reason: string, accused: OutstandingInQueue | null = null): Hang => {
      return { queue, reason, overtaken: accused };
    };
    if (stillMs > this.#timeoutMs) {
      const process = processOf();
      if (process === null) return null;
      const seconds = (stillMs / 1000).toFixed(1);
      if (process === 'asleep') return { queue, reason: `its process waits in the kernel for ${seconds} s` };
      if (process === 'stopped') return hang(`it has been stopped, by a signal or a debugger, for ${seconds} s`);
      if (process === 'ending') return hang(`it was ended ${seconds} s ago and is not gone`);
      const doing = process === 'running' ? 'it computes without end' : 'it does nothing';
      return hang(`${unanswered ?? `it gave no sign of life for ${seconds} s`}: ${doing}`);
    }
    if (unanswered === null) return null;
    if (!this.#javascript) return { queue, reason: `${unanswered}: the store does not answer` };
    if (silentMs > this.#timeoutMs) return hang(`${unanswered}, and nothing else was answered`);
    if (!state.overtaken || before?.overtaken !== true) return null;
    const [only, ...others] = overdue;
    const accused = others.length === 0 && only?.overtakenByItsKind === true && !isFlush(only) ? only : null;
    return hang(`${unanswered}, though later ones were answered`, accused);
  }
}

function describe(request: OutstandingInQueue): string {
  return `a ${describeRequest(requestStatus(request))} is unanswered after ${(request.ageMs / 1000).toFixed(1)} s`;
}

/**
 * Looks at a generation again and again until it hangs or is no longer watched. Returns how to stop. One that has not
 * fetched may boot node for longer than the time-out; the command that waits for its FETCHes has a deadline of its own.
 */
export function watchForHangs(options: {
  readonly rounds: Rounds;
  readonly pids: readonly number[];
  readonly pages: SharedPages;
  readonly timeoutMs: number;
  readonly javascript: boolean;
  readonly onHang: (hang: Hang) => void;
  /** At every look, with the number of requests of each queue that failed so far. */
  readonly onFailed: (failed: readonly number[]) => void;
  /** At every look. */
  readonly onStall: (stall: Stall | null) => void;
}): () => void {
  const { rounds, pids, pages, timeoutMs, javascript, onHang, onFailed, onStall } = options;
  const detector = new HangDetector({ timeoutMs, javascript });
  const signs = new Float64Array(SIGNS.count * pids.length);
  const sightOf = (pid: number, queue: number): QueueSight => {
    const sign = (which: number): number => signs[queue * SIGNS.count + which] ?? 0;
    const oldestMs = sign(SIGNS.oldestMs);
    return {
      serving: sign(SIGNS.phase) === QueuePhase.fetched,
      progress: sign(SIGNS.progress),
      answered: sign(SIGNS.answered),
      busy: oldestMs > 0,
      overdue:
        oldestMs > timeoutMs ? pages.outstanding(queue).filter((one) => !one.injected && one.ageMs > timeoutMs) : [],
      process: () => stateOfProcess(pid),
    };
  };
  const end = rounds.watch(FIRST_LOOK_MS, () => {
    pages.signsOfLife(signs);
    onFailed(pids.map((_, queue) => signs[queue * SIGNS.count + SIGNS.failed] ?? 0));
    const { hang, stall, ask, nextMs } = detector.observe({ now: performance.now(), queues: pids.map(sightOf) });
    if (hang !== null) {
      end();
      onHang(hang);
      return nextMs;
    }
    onStall(stall);
    for (const queue of ask) pages.ask(queue);
    return nextMs;
  });
  return end;
}
