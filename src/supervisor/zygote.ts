import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SupervisorError } from '../errors.js';
import {
  errnoName,
  openPidfd,
  reap,
  translated,
  watchProcess,
  type ControlRequest,
  type HeldGeneration,
  type ProcessWatch,
  type SpawnRequest,
  type ZygoteChannel,
  type ZygoteMessage,
} from '../native/binding.js';
import { stateOfProcess } from './processes.js';
import type { ZygoteConnection } from './zygote-connection.js';

type Answer<Type extends ZygoteMessage['type']> = Extract<ZygoteMessage, { type: Type }>;
export type ExitNotice = Answer<'exited'>;
export type ControlAnswer = Answer<'controlled'>;

interface Pending {
  readonly resolve: (message: ZygoteMessage) => void;
  readonly reject: (error: SupervisorError) => void;
}

/** Ample for a process that only forks; a zygote that needs longer hangs. */
const ZYGOTE_DEADLINE_MS = 5_000;
/** How long a killed zygote may take to be gone. */
const END_DEADLINE_MS = 1_000;
/** How long the control processes of a supervisor that is gone, which were killed with it, may take to be gone too. */
const CONTROLS_DEADLINE_MS = 2_000;
const CONTROLS_POLL_MS = 10;

/**
 * One running zygote and the requests that wait for it. When it dies every queue process dies with it, `onExit` is no
 * longer called, and requests reject; the owner starts another.
 */
export class Zygote {
  /** Of its socket; a later zygote's is higher. */
  readonly number: number;
  /** Of the zygote: START_DEV and END_USER_RECOVERY name it, as it opened the char device. */
  readonly pid: number;
  /** Resolves when the zygote is gone. */
  readonly closed: Promise<void>;
  readonly #channel: ZygoteChannel;
  readonly #process: ProcessWatch | null;
  readonly #pending = new Map<number, Pending>();
  #held: HeldGeneration[] = [];
  #alive = true;
  #expiring: boolean;

  /** Call in the turn in which the connection was made. `onExit`: what becomes of queue processes. */
  constructor(connection: ZygoteConnection, number: number, onExit: (notice: ExitNotice) => void) {
    this.number = number;
    this.#expiring = connection.expiring;
    this.#channel = connection.channel;
    this.pid = connection.pid;
    const pidfd = openPidfd(connection.pid);
    const onEnd = (): void => {
      // It is our child, and Node does not know it, where we took this process over by exec.
      if (connection.found) reap(this.pid);
    };
    this.#process = pidfd === null ? null : watchProcess(pidfd, onEnd);
    this.closed = new Promise((resolve) => {
      connection.onClose = () => {
        this.#alive = false;
        // First, so that the owner knows before anyone whose request rejects can ask it for a zygote.
        resolve();
        for (const pending of this.#pending.values()) pending.reject(zygoteGone());
        this.#pending.clear();
      };
    });
    connection.onMessage = (message) => {
      if (message.type === 'exited') {
        if (message.sequence === 0) onExit(message);
        // A control process that was killed never answered; one that answered is no longer pending.
        else
          this.#settle(message.sequence, (pending) => {
            pending.reject(aborted());
          });
      } else if (message.type === 'held') {
        this.#held.push(message);
      } else {
        this.#settle(message.sequence, (pending) => {
          pending.resolve(message);
        });
      }
    };
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** It ends once it serves nothing. */
  get expiring(): boolean {
    return this.#expiring;
  }

  expire(): void {
    this.#expiring = true;
    if (this.#alive) this.#channel.expire();
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
        `starting queue processes of ublk device ${String(request.deviceId)} failed: ${answer.step} (${code})`,
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

  /**
   * What it holds for the successor of a supervisor that is gone, once nothing that one began is under way any more; but
   * what waits uninterruptibly is not waited for.
   */
  async inventory(): Promise<readonly HeldGeneration[]> {
    const deadline = performance.now() + CONTROLS_DEADLINE_MS;
    for (;;) {
      this.#held = [];
      const answer = await this.#request(
        () => this.#channel.inventory(),
        ZYGOTE_DEADLINE_MS,
        () => true,
      );
      if (answer.type !== 'inventoried') throw zygoteGone();
      if (answer.controls === 0 || performance.now() > deadline) return this.#held;
      for (const { sharedPage, files } of this.#held) for (const fd of [sharedPage, ...files]) closeSync(fd);
      await sleep(CONTROLS_POLL_MS);
    }
  }

  /** Lets go of what is kept of a device; the backend's files, and so its locks, are free when this resolves. */
  async forget(deviceId: number): Promise<void> {
    await this.#request(
      () => this.#channel.forget(deviceId),
      ZYGOTE_DEADLINE_MS,
      () => true,
    );
  }

  /** Ends every queue process and the zygote. */
  async retire(): Promise<void> {
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
    // A process in uninterruptible sleep survives the cancellation; nobody waits for it any longer.
    const giveUp = (error: SupervisorError): void => {
      this.#settle(sequence, (pending) => {
        if (this.#alive) this.#channel.cancel(sequence);
        pending.reject(error);
      });
    };
    const deadline = setTimeout(() => {
      void (hangs() ? this.#end() : Promise.resolve()).then(() => {
        giveUp(new SupervisorError('no answer before the deadline (TIMEOUT)', { code: 'TIMEOUT' }));
      });
    }, deadlineMs);
    const onAbort = (): void => {
      giveUp(aborted());
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    return new Promise<ZygoteMessage>((resolve, reject) => {
      this.#pending.set(sequence, { resolve, reject });
    }).finally(() => {
      clearTimeout(deadline);
      signal?.removeEventListener('abort', onAbort);
    });
  }

  /**
   * A zygote that hangs must not act on a request later, when nobody waits for the processes or the device that come of
   * it. Its death ends every queue process, and their devices recover with the next zygote.
   */
  async #end(): Promise<void> {
    this.#process?.kill();
    await this.#closedSoon();
  }

  /** Resolves nevertheless when a zygote in uninterruptible sleep is not gone. */
  #closedSoon(): Promise<void> {
    return Promise.race([this.closed, sleep(END_DEADLINE_MS, undefined, { ref: false })]);
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
