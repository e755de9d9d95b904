import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { SupervisorError } from '../errors.js';
import {
  connectZygote,
  errnoName,
  listenSeqpacket,
  zygoteLibrary,
  type ControlRequest,
  type SpawnRequest,
  type ZygoteChannel,
  type ZygoteMessage,
} from '../native/binding.js';
import { isStopped } from './stopped.js';

type Answer<Type extends ZygoteMessage['type']> = Extract<ZygoteMessage, { type: Type }>;
export type ExitNotice = Answer<'exited'>;

/** Replaced once the zygote has said hello. */
interface ChannelEvents {
  onMessage: (message: ZygoteMessage) => void;
  onClose: () => void;
}

interface Pending {
  readonly resolve: (message: ZygoteMessage) => void;
  readonly reject: (error: SupervisorError) => void;
}

/** What a queue process runs that returns from the preloaded library. */
const QUEUE_PROGRAM = fileURLToPath(new URL('../queue-proc/main.js', import.meta.url));
/** Ample for a process that only forks; a zygote that needs longer hangs. */
const ZYGOTE_DEADLINE_MS = 5_000;
/** How long a killed zygote may take to be gone. */
const END_DEADLINE_MS = 1_000;

/**
 * One running zygote and the requests that wait for it. When it dies every queue process dies with it, `onExit` is no
 * longer called, and requests reject; the owner starts another.
 */
export class Zygote {
  /** Of the zygote: START_DEV and END_USER_RECOVERY name it, as it opened the char device. */
  readonly pid: number;
  /** Resolves when the zygote is gone. */
  readonly closed: Promise<void>;
  readonly #channel: ZygoteChannel;
  readonly #child: ChildProcess;
  readonly #pending = new Map<number, Pending>();
  #alive = true;

  private constructor(
    channel: ZygoteChannel,
    child: ChildProcess,
    pid: number,
    events: ChannelEvents,
    onExit: (notice: ExitNotice) => void,
  ) {
    this.#channel = channel;
    this.#child = child;
    this.pid = pid;
    this.closed = new Promise((resolve) => {
      events.onClose = () => {
        this.#alive = false;
        // First, so that the owner knows before anyone whose request rejects can ask it for a zygote.
        resolve();
        for (const pending of this.#pending.values()) pending.reject(zygoteGone());
        this.#pending.clear();
      };
    });
    events.onMessage = (message) => {
      if (message.type === 'exited') {
        if (message.sequence === 0) onExit(message);
        // A control process that was killed never answered; one that answered is no longer pending.
        else
          this.#settle(message.sequence, (pending) => {
            pending.reject(aborted());
          });
      } else {
        this.#settle(message.sequence, (pending) => {
          pending.resolve(message);
        });
      }
    };
  }

  /** Starts a zygote that listens at `socketPath`. `controlFd`: an open /dev/ublk-control, which the zygote inherits. */
  static async start(socketPath: string, controlFd: number, onExit: (notice: ExitNotice) => void): Promise<Zygote> {
    await rm(socketPath, { force: true });
    const listener = listenSeqpacket(socketPath);
    const child = spawn(process.execPath, [QUEUE_PROGRAM], {
      stdio: ['ignore', 'ignore', 'inherit', listener, controlFd],
      env: { LD_PRELOAD: zygoteLibrary, UBLK_SUPERVISOR_ZYGOTE: '1' },
      // Not in our process group: a terminal's Ctrl-C is for the supervisor, which then stops the devices in order.
      detached: true,
    });
    closeSync(listener);
    const events: ChannelEvents = { onMessage: () => undefined, onClose: () => undefined };
    const channel = connectZygote(
      socketPath,
      (message) => {
        events.onMessage(message);
      },
      () => {
        events.onClose();
      },
    );
    const deadline = new AbortController();
    const timer = setTimeout(() => {
      deadline.abort();
    }, ZYGOTE_DEADLINE_MS);
    try {
      const { pid } = await new Promise<Answer<'hello'>>((resolve, reject) => {
        events.onMessage = (message) => {
          if (message.type === 'hello') resolve(message);
        };
        events.onClose = () => {
          reject(zygoteGone());
        };
        deadline.signal.addEventListener('abort', () => {
          reject(new SupervisorError('starting the zygote failed: no answer (TIMEOUT)', { code: 'TIMEOUT' }));
        });
        child.once('error', reject);
        child.once('exit', (code, signal) => {
          const end = signal ?? `exit code ${String(code)}`;
          const message = `starting the zygote failed: it ended with ${end}; was ${zygoteLibrary} built for this machine?`;
          reject(new SupervisorError(message, { code: 'ZYGOTE' }));
        });
      });
      return new Zygote(channel, child, pid, events, onExit);
    } catch (error) {
      channel.close();
      child.kill('SIGKILL');
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** Forks a generation. Rejects with the errno's name as code when a step failed. */
  async spawn(request: SpawnRequest, sharedPage: number, files: readonly number[]): Promise<Answer<'spawned'>> {
    const send = (): number => this.#channel.spawn(request, sharedPage, files);
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
  async control(request: ControlRequest, deadlineMs: number, signal?: AbortSignal): Promise<Answer<'controlled'>> {
    // The command may wait in the kernel for good reason while the zygote is well.
    const hangs = (): boolean => isStopped(this.pid);
    const answer = await this.#request(() => this.#channel.control(request), deadlineMs, hangs, signal);
    if (answer.type !== 'controlled') throw zygoteGone();
    return answer;
  }

  /** Ends every queue process and the zygote. */
  async retire(): Promise<void> {
    if (this.#alive) this.#channel.retire();
    await this.#closedSoon();
    if (this.#alive) await this.#end();
  }

  /** `hangs`: whether it is the zygote's fault when there is no answer before the deadline. */
  #request(send: () => number, deadlineMs: number, hangs: () => boolean, signal?: AbortSignal): Promise<ZygoteMessage> {
    if (!this.#alive) return Promise.reject(zygoteGone());
    if (signal?.aborted) return Promise.reject(aborted());
    const sequence = send();
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
    this.#child.kill('SIGKILL');
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

/** The pid of a zygote that still listens at `socketPath`, null when there is none. */
export async function servingZygote(socketPath: string): Promise<number | null> {
  return new Promise((resolve, reject) => {
    try {
      const channel = connectZygote(
        socketPath,
        (message) => {
          channel.close();
          resolve(message.type === 'hello' ? message.pid : null);
        },
        () => {
          resolve(null);
        },
      );
    } catch (error) {
      if (error instanceof SupervisorError && (error.code === 'ENOENT' || error.code === 'ECONNREFUSED')) resolve(null);
      else reject(error instanceof Error ? error : new Error(String(error)));
    }
  });
}

function zygoteGone(): SupervisorError {
  return new SupervisorError('the zygote is gone', { code: 'ZYGOTE' });
}

function aborted(): SupervisorError {
  return new SupervisorError('cancelled', { code: 'ABORTED' });
}
