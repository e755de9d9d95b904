import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SupervisorError } from '../../errors.js';
import { errnoName } from '../../errors.js';
import { openPidfd, watchProcess, type ProcessWatch } from '../../native/addon/process-watch.js';
import { translated } from '../../native/addon/load.js';
import type {
  ControlRequest,
  HeldGeneration,
  SpawnRequest,
  ZygoteChannel,
  ZygoteMessage,
} from '../../native/addon/zygote-channel.js';
import { afterDeadline } from '../../timing/deadline.js';
import { stateOfProcess } from '../host/processes.js';
import type { ZygoteConnection } from './zygote-connection.js';

type Answer<Type extends ZygoteMessage['type']> = Extract<ZygoteMessage, { type: Type }>;
export type ExitNotice = Answer<'exited'>;
export type ControlAnswer = Answer<'controlled'>;

/** A generation that its zygote holds for the successor of a supervisor that is gone. */
export interface HeldByZygote extends HeldGeneration {
  readonly zygote: number;
}

/** A control process that goes on after its answer. */
export interface HeldProcess {
  readonly pid: number;
  /** Resolves when it, and what it has open, is gone. */
  readonly ended: Promise<void>;
  /** Ends it; resolves when it is gone, or when it has survived that for a while. */
  release(): Promise<void>;
}

interface Pending {
  readonly resolve: (message: ZygoteMessage) => void;
  readonly reject: (error: SupervisorError) => void;
}

/** Ample for a process that only forks; a zygote that needs longer hangs. */
const ZYGOTE_DEADLINE_MS = 10_000;
/** How long a killed zygote, or control process, may take to be gone. */
const END_DEADLINE_MS = 1_000;
/** How long the control processes of a supervisor that is gone, which were killed with it, may take to be gone too. */
const CONTROLS_DEADLINE_MS = 2_000;
const CONTROLS_POLL_MS = 10;

/** How long what a zygote said before its end may take to arrive. */
const LAST_WORDS_DEADLINE_MS = 50;

/**
 * A device's zygote and the requests that wait for it. When it dies every queue process of its device dies with it, and
 * requests reject; the device goes on with another one.
 */
export class Zygote {
  /** The number of its socket; a later zygote's is higher. */
  readonly number: number;
  /** Which forked it; of one that was adopted, whose code stands for it. */
  readonly nursery: number;
  /** The zygote's own pid: START_DEV and END_USER_RECOVERY name it, as it opened the char device. */
  readonly pid: number;
  /** Resolves when the zygote is gone. */
  readonly closed: Promise<void>;
  /** What becomes of queue processes. */
  onExit: (notice: ExitNotice) => void = () => undefined;
  readonly #channel: ZygoteChannel;
  readonly #process: ProcessWatch | null;
  readonly #pending = new Map<number, Pending>();
  /** The callers that wait for the end of a control process. */
  readonly #ends = new Map<number, () => void>();
  #alive = true;
  #retired = false;

  /** Call in the turn in which the connection was made. */
  constructor(connection: ZygoteConnection, { number, nursery }: { number: number; nursery: number }) {
    this.number = number;
    this.nursery = nursery;
    this.#channel = connection.channel;
    this.pid = connection.pid;
    connection.onMessage = (message) => {
      if (message.type === 'exited' && message.sequence === 0) this.onExit(message);
      else {
        this.#settle(message.sequence, ({ resolve, reject }) => {
          // A control process that was killed never answered; one that answered is no longer pending.
          if (message.type === 'exited') reject(aborted());
          else resolve(message);
        });
        if (message.type === 'exited') this.#ended(message.sequence);
      }
    };
    const disconnected = new Promise<void>((resolve) => {
      connection.onClose = resolve;
    });
    let end = (): void => undefined;
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    const pidfd = openPidfd(connection.pid);
    this.#process = pidfd === null ? null : watchProcess(pidfd, end);
    if (pidfd === null) end();
    this.closed = this.#gone(disconnected, ended);
  }

  /** One that we can no longer talk to is of no use, and what it was asked for must not happen later. */
  async #gone(disconnected: Promise<void>, ended: Promise<void>): Promise<void> {
    await Promise.race([disconnected, ended]);
    this.#alive = false;
    this.#process?.kill();
    await ended;
    // A control process that cannot be killed has the connection too.
    await Promise.race([disconnected, sleep(LAST_WORDS_DEADLINE_MS)]);
    this.#channel.close();
    for (const { reject } of this.#pending.values()) reject(zygoteGone());
    this.#pending.clear();
    for (const sequence of this.#ends.keys()) this.#ended(sequence);
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** Its end is our doing. */
  get retired(): boolean {
    return this.#retired;
  }

  /** Forks a generation. Rejects with the errno's name as code when a step failed. */
  async spawn(
    request: SpawnRequest,
    sharedPage: number,
    files: readonly number[],
    keptFiles: readonly number[],
  ): Promise<Answer<'spawned'>> {
    const send = (): number => this.#channel.spawn(request, sharedPage, files, keptFiles);
    const answer = await this.#request(send, ZYGOTE_DEADLINE_MS, () => true);
    if (answer.type !== 'spawned') throw zygoteGone();
    if (answer.error !== 0) {
      const code = errnoName(answer.error);
      throw new SupervisorError(
        `starting queue processes of ublk device ${request.deviceId} failed: ${answer.step} (${code})`,
        { code, errno: answer.error },
      );
    }
    return answer;
  }

  /**
   * Runs a control command in a process of its own, which is killed when `deadlineMs` has passed or `signal` fires.
   * Resolves with whatever the kernel said; rejects with `TIMEOUT`, `ABORTED` or `ZYGOTE`.
   */
  async control(request: ControlRequest, deadlineMs: number, signal?: AbortSignal): Promise<ControlAnswer> {
    // The command may wait in the kernel for good reason while the zygote is well.
    const hangs = (): boolean => stateOfProcess(this.pid) === 'stopped';
    const answer = await this.#request(() => this.#channel.control(request), deadlineMs, hangs, signal);
    if (answer.type !== 'controlled') throw zygoteGone();
    return answer;
  }

  /** Runs a control command whose process goes on when it has answered; `result` of an answer below 0: it does not. */
  async hold(request: ControlRequest, deadlineMs: number): Promise<ControlAnswer & HeldProcess> {
    let end: () => void = () => undefined;
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    const hangs = (): boolean => stateOfProcess(this.pid) === 'stopped';
    const send = (): number => {
      const sequence = this.#channel.control(request);
      this.#ends.set(sequence, end);
      return sequence;
    };
    const answer = await this.#request(send, deadlineMs, hangs);
    if (answer.type !== 'controlled') throw zygoteGone();
    const release = async (): Promise<void> => {
      if (this.#ends.has(answer.sequence)) this.#channel.cancel(answer.sequence);
      await Promise.race([ended, sleep(END_DEADLINE_MS, undefined, { ref: false })]);
    };
    return { ...answer, ended, release };
  }

  /**
   * What it holds for the successor of a supervisor that is gone, once nothing that one began is under way any more; but
   * what waits uninterruptibly is not waited for.
   */
  async inventory(): Promise<HeldGeneration | null> {
    const deadline = performance.now() + CONTROLS_DEADLINE_MS;
    for (;;) {
      const answer = await this.#request(
        () => this.#channel.inventory(),
        ZYGOTE_DEADLINE_MS,
        () => true,
      );
      if (answer.type !== 'held') throw zygoteGone();
      const { controls, generation } = answer;
      if (controls === 0 || performance.now() > deadline) return generation;
      if (generation !== null) closeHeld(generation);
      await sleep(CONTROLS_POLL_MS);
    }
  }

  /** Leaves it, and what it serves, to another supervisor. */
  disconnect(): void {
    this.#alive = false;
    this.#channel.close();
  }

  /** Ends the zygote and every process of its; what it kept is free when this resolves. */
  async retire(): Promise<void> {
    this.#retired = true;
    if (this.#alive) this.#channel.retire();
    await this.#closedSoon();
    if (this.#alive) await this.#end();
  }

  /** `hangs`: whether it is the zygote's fault when there is no answer before the deadline. */
  async #request(
    send: () => number,
    deadlineMs: number,
    hangs: () => boolean,
    signal?: AbortSignal,
  ): Promise<ZygoteMessage> {
    if (!this.#alive) throw zygoteGone();
    if (signal?.aborted) throw aborted();
    const sequence = translated(send);
    // A process in uninterruptible sleep survives the cancellation; the caller waits no longer.
    const giveUp = (error: SupervisorError): void =>
      this.#settle(sequence, (pending) => {
        if (this.#alive) this.#channel.cancel(sequence);
        pending.reject(error);
      });
    const callOff = afterDeadline(deadlineMs, () => {
      void (hangs() ? this.#end() : Promise.resolve()).then(() =>
        giveUp(new SupervisorError('no answer before the deadline (TIMEOUT)', { code: 'TIMEOUT' })),
      );
    });
    const onAbort = (): void => giveUp(aborted());
    signal?.addEventListener('abort', onAbort, { once: true });
    return new Promise<ZygoteMessage>((resolve, reject) => {
      this.#pending.set(sequence, { resolve, reject });
    }).finally(() => {
      callOff();
      signal?.removeEventListener('abort', onAbort);
    });
  }

  /**
   * A zygote that hangs must not act on a request later, when nobody waits for the processes or the device that come of
   * it. Its death ends the queue processes, and the device recovers with the next zygote.
   */
  async #end(): Promise<void> {
    this.#process?.kill();
    await this.#closedSoon();
  }

  /** Resolves nevertheless when a zygote in uninterruptible sleep is not gone. */
  #closedSoon(): Promise<void> {
    return Promise.race([this.closed, sleep(END_DEADLINE_MS, undefined, { ref: false })]);
  }

  #ended(sequence: number): void {
    this.#ends.get(sequence)?.();
    this.#ends.delete(sequence);
  }

  #settle(sequence: number, act: (pending: Pending) => void): void {
    const pending = this.#pending.get(sequence);
    if (!pending) return;
    this.#pending.delete(sequence);
    act(pending);
  }
}

function zygoteGone(): SupervisorError {
  return new SupervisorError('the zygote is gone', { code: 'ZYGOTE' });
}

function aborted(): SupervisorError {
  return new SupervisorError('cancelled', { code: 'ABORTED' });
}

/** What is not adopted must not stay open, and locked, here. */
export function closeHeld({ sharedPage, files }: HeldGeneration): void {
  for (const fd of [sharedPage, ...files]) closeSync(fd);
}
