import { constants } from 'node:os';
import { SupervisorError } from '../../errors.js';
import { errnoName } from '../../errors.js';
import { QueuePhase } from '../../native/addon/shared-pages.js';
import { watchProcess } from '../../native/addon/process-watch.js';
import type { ProcessEnd } from '../../native/addon/zygote-channel.js';
import type { ProcessWatch } from '../../native/addon/process-watch.js';
import type { SharedPages } from '../../native/addon/shared-pages.js';
import type { BackendChannel } from './backend-channel.js';
import type { BackendOutput } from './backend-output.js';
import { afterDeadline } from '../../timing/deadline.js';
import type { FailureReports } from './failure-reports.js';
import type { Generation, QueueReport, Remains } from './kernel.js';
import { answeredCounts, readRemains } from './remains.js';
import type { ExitStatus, GenerationPhase } from '../../api/status.js';
import type { Rounds } from '../../timing/rounds.js';
import { watchForHangs, type Hang, type Stall } from './hang-detector.js';

/** How long the zygote may take to say how a process ended before we go on without knowing. */
const NOTICE_DEADLINE_MS = 50;
/**
 * How long, after the kernel has sent the first away, a process that died may take to be gone, or the others to close their
 * backends; ublk-supervisor-backend(7) promises it.
 */
const CLOSE_DEADLINE_MS = 1000;
/** How long a process may stay after SIGKILL before we say that it is in uninterruptible sleep. */
const KILL_DEADLINE_MS = 5_000;

/** Filled in as the news arrive: the pidfd says that, the zygote a moment later how. */
type MutableExit = { -readonly [Key in keyof ExitStatus]: ExitStatus[Key] };

/**
 * A member's end is seen by pidfd, which works whatever became of the zygote; how it ended is known to the zygote, its
 * parent. `exited` fires when both are known. The siblings are ended at once: no kernel lets a device lose one queue.
 */
interface Member {
  readonly pid: number;
  /** null: it was gone from the beginning. */
  readonly watch: ProcessWatch | null;
  readonly exit: MutableExit;
  /** Everything that it had to say has arrived. */
  heard: boolean;
}

/** A generation of real processes, watched by pidfd. */
export class ProcessGeneration implements Generation {
  readonly number: number;
  readonly pids: readonly number[];
  readonly exited: AbortSignal;
  readonly allExited: Promise<void>;
  readonly #pages: SharedPages;
  readonly #members: readonly Member[];
  readonly #firstExit = new AbortController();
  /** The exits of the processes that ended before we ended the rest. */
  readonly #causes: MutableExit[] = [];
  #endingOthers = false;
  #hang: Hang | null = null;
  #stall: Stall | null = null;
  readonly #answeredBefore: Remains['answered'];
  /** When the first of the processes ended, by performance.now(). */
  #diedAt = Infinity;
  readonly #stopWatching: () => void;
  #alive: number;

  /** `channels`: one for each process of a JavaScript backend, none of a native one; `output`: where they print. */
  constructor(options: {
    readonly number: number;
    readonly pages: SharedPages;
    /** By queue; `pidfd`, which is taken over, is null where the process is gone already. */
    readonly processes: readonly { readonly pid: number; readonly pidfd: number | null }[];
    readonly channels: readonly BackendChannel[];
    readonly output: BackendOutput | null;
    /** The rounds in which the generation is looked at for hangs. */
    readonly rounds: Rounds;
    readonly requestTimeoutMs: number;
    readonly failures: FailureReports;
    readonly onReport: (report: QueueReport) => void;
  }) {
    const { number, pages, processes, channels, rounds, requestTimeoutMs } = options;
    const pids = processes.map(({ pid }) => pid);
    this.number = number;
    this.pids = pids;
    this.#pages = pages;
    this.exited = this.#firstExit.signal;
    this.#alive = pids.length;
    this.#answeredBefore = answeredCounts(pages, pids.length);
    let allExited = (): void => undefined;
    this.allExited = new Promise((resolve) => {
      allExited = resolve;
    });
    this.#members = processes.map(({ pid, pidfd }, queue) => {
      const exit: MutableExit = { queue, pid, code: null, signal: null, reason: null, stack: null, at: '' };
      const channel = channels[queue];
      const onExit = (): void => {
        exit.at = new Date().toISOString();
        exit.reason ??= this.#reasonOf(queue);
        this.#onEnd(exit);
        if (--this.#alive === 0) allExited();
      };
      const watch = pidfd === null ? null : watchProcess(pidfd, onExit);
      if (pidfd === null) queueMicrotask(onExit);
      const member = { pid, watch, exit, heard: channel === undefined };
      void channel?.closed.then(() => {
        const heap = options.output?.sawFullHeap() === true ? 'its JavaScript heap was full' : null;
        exit.reason = channel.lastWords?.message ?? heap ?? exit.reason;
        exit.stack = channel.lastWords?.stack ?? exit.stack;
        member.heard = true;
        this.#report();
      });
      return member;
    });
    this.#stopWatching = watchForHangs({
      rounds,
      pids,
      pages,
      timeoutMs: requestTimeoutMs,
      javascript: channels.length > 0,
      onHang: (hang) => this.#onHang(hang),
      onFailed: (failed) => options.failures.look(failed),
      onStall: (stall) => {
        const before = this.#stall;
        this.#stall = stall;
        const said = (queue: number, level: 'info' | 'warn', message: string): void =>
          options.onReport({ queue, report: { type: 'log', level, message } });
        if (stall !== null && before === null) said(stall.queue, 'warn', `${stall.reason}; it is waited for`);
        else if (stall === null && before !== null) said(before.queue, 'info', 'what was waited for is over');
      },
    });
  }

  get stalled(): string | null {
    return this.#stall?.reason ?? null;
  }

  /** What the zygote, as parent, learned of one of the processes. */
  onNotice(notice: ProcessEnd): void {
    const member = this.#members.find(({ pid }) => pid === notice.pid);
    if (!member) return;
    member.exit.code = notice.code;
    member.exit.signal = notice.signal === null ? null : signalName(notice.signal);
    this.#report();
  }

  phase(): GenerationPhase {
    const phases = this.pids.map((_, queue) => this.#pages.readQueue(queue).phase);
    if (phases.every((phase) => phase >= QueuePhase.fetched)) return 'fetched';
    return phases.some((phase) => phase >= QueuePhase.fetching) ? 'fetching' : 'preparing';
  }

  remains(): Remains {
    const queues = this.pids.length;
    const sinceMs = Math.max(0, performance.now() - this.#diedAt);
    // A process whose requests the kernel took back, because another one died, has released its queue.
    const ended = this.#causes.map(({ queue }) => queue);
    const died = ended.filter((queue) => this.#pages.readQueue(queue).phase !== QueuePhase.released);
    return {
      died: this.#hang === null ? (died.length > 0 ? died : ended) : [this.#hang.queue],
      hung: this.#hang,
      phase: this.phase(),
      ...readRemains(this.#pages, queues, sinceMs, this.#answeredBefore),
    };
  }

  async drain(deadlineMs: number): Promise<void> {
    this.#stopWatching();
    // From here on no exit is a failure, and none ends the others.
    this.#endingOthers = true;
    this.#pages.drain();
    await this.#allExitWithin(deadlineMs);
  }

  async kill(): Promise<void> {
    this.#stopWatching();
    for (const { watch } of this.#members) watch?.kill();
    if (await this.#allExitWithin(KILL_DEADLINE_MS)) return;
    const stuck = this.#members.filter(({ exit }) => exit.at === '').map(({ pid }) => String(pid));
    const message = `ending queue process ${stuck.join(', ')} failed: it is in uninterruptible sleep; free what it waits for`;
    throw new SupervisorError(message, { code: 'STUCK' });
  }

  #allExitWithin(deadlineMs: number): Promise<boolean> {
    return new Promise((resolve) => {
      const callOff = afterDeadline(deadlineMs, () => resolve(false));
      void this.allExited.then(() => {
        callOff();
        resolve(true);
      });
    });
  }

  /** Ended from here it says nothing itself, so its exit says what we saw. */
  #onHang(hang: Hang): void {
    const exit = this.#members[hang.queue]?.exit;
    if (this.#endingOthers || exit === undefined) return;
    exit.reason = hang.reason;
    exit.stack = this.#pages.stackOf(hang.queue) || null;
    this.#hang = hang;
    this.#diedAt = performance.now();
    this.#causes.push(exit);
    this.#endOthers();
  }

  #onEnd(exit: MutableExit): void {
    if (this.#endingOthers) return;
    this.#diedAt = Math.min(this.#diedAt, performance.now());
    this.#causes.push(exit);
    // Up to 6.14 the kernel sends the siblings of a process that died away while that one is still on its way out, so
    // they may well be the first that we see.
    const died = this.#pages.readQueue(exit.queue).phase !== QueuePhase.released;
    if (died || this.#causes.length === this.#members.length) this.#endOthers();
    else afterDeadline(CLOSE_DEADLINE_MS, this.#endOthers.bind(this));
  }

  #endOthers(): void {
    if (this.#endingOthers) return;
    this.#endingOthers = true;
    this.#stopWatching();
    for (const { watch } of this.#members) watch?.kill();
    this.#report();
    afterDeadline(NOTICE_DEADLINE_MS, () => this.#firstExit.abort(this.#cause));
  }

  #report(): void {
    // The zygote may tell of a sibling that we killed before it tells of the cause.
    const complete = this.#causes.every(
      ({ queue, code, signal }) => (code !== null || signal !== null) && this.#members[queue]?.heard === true,
    );
    if (this.#endingOthers && complete) this.#firstExit.abort(this.#cause);
  }

  get #cause(): ExitStatus | undefined {
    return this.#causes.find(({ code }) => code !== 0) ?? this.#causes[0];
  }

  #reasonOf(queue: number): string | null {
    const { failureErrno, failureStep } = this.#pages.readQueue(queue);
    return failureErrno === 0 ? null : `${failureStep} (${errnoName(failureErrno)})`;
  }
}

function signalName(number: number): string {
  const entry = Object.entries(constants.signals).find(([, value]) => value === number);
  return entry?.[0] ?? `signal ${number}`;
}
