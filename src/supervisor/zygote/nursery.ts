import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, rmSync } from 'node:fs';
import { errorCode, type ErrorCode } from '../../error-codes.js';
import { SupervisorError } from '../../errors.js';
import { forkZygote, zygoteLibrary } from '../../native/addon/zygote-channel.js';
import { listenSeqpacket, seqpacketPair } from '../../native/addon/system.js';
import { programPath } from '../../package-root.js';
import { greetZygote, type ZygoteConnection } from './zygote-connection.js';

/** A nursery is a node that starts before it forks for the first time; for that a busy machine takes many seconds. */
const FIRST_HELLO_DEADLINE_MS = 60_000;

interface Running {
  /** A zygote of it has said hello. */
  forks: boolean;
  readonly child: ChildProcess;
  /** Our end of the connection to it. */
  readonly socket: number;
  /** Rejects when it ends. */
  readonly ended: Promise<never>;
}

/**
 * The process that zygotes are forked from, started when the first one is wanted, and again after it died: its death costs
 * no zygote. It is the native code as it was installed when it started.
 */
export class Nursery {
  /** A later one's is higher. */
  readonly number: number;
  readonly #controlFd: number;
  #running: Running | null = null;
  /** Forks are made one after the other: so nothing piles up, however many are wanted at once. */
  #lastFork: Promise<unknown> = Promise.resolve();

  /** `controlFd`: an open /dev/ublk-control, which zygotes inherit. */
  constructor(number: number, controlFd: number) {
    this.number = number;
    this.#controlFd = controlFd;
  }

  /** A new zygote, which listens at `socketPath`. */
  fork(socketPath: string): Promise<ZygoteConnection> {
    const forked = this.#lastFork.then(() => this.#fork(socketPath));
    this.#lastFork = forked.catch(() => undefined);
    return forked;
  }

  /** Resolves when it is gone, and was waited for. What it forked stays. */
  async close(): Promise<void> {
    await this.#lastFork;
    const running = this.#running;
    if (running === null) return;
    running.child.kill('SIGKILL');
    await running.ended.catch(() => undefined);
  }

  async #fork(socketPath: string): Promise<ZygoteConnection> {
    rmSync(socketPath, { force: true });
    const nursery = (this.#running ??= this.#start());
    const [ours, theirs] = seqpacketPair();
    const greeting = greetZygote(ours, nursery.forks ? undefined : FIRST_HELLO_DEADLINE_MS);
    try {
      try {
        const listener = listenSeqpacket(socketPath);
        try {
          forkZygote(nursery.socket, listener, theirs);
        } finally {
          closeSync(listener);
        }
      } finally {
        closeSync(theirs);
      }
      const connection = await Promise.race([greeting, nursery.ended]);
      nursery.forks = true;
      return connection;
    } catch (error) {
      const { code } = error as { readonly code?: string };
      // A nursery that did not answer in time must not answer later. Another one forks the next zygote.
      if (code === 'TIMEOUT') nursery.child.kill('SIGKILL');
      if (code === 'TIMEOUT' || code === 'EPIPE') await nursery.ended.catch(() => undefined);
      void greeting.then(
        ({ channel }) => channel.close(),
        () => undefined,
      );
      rmSync(socketPath, { force: true });
      throw error;
    }
  }

  #start(): Running {
    const [socket, theirs] = seqpacketPair();
    const child = spawn(process.execPath, [programPath('queue-proc')], {
      stdio: ['ignore', 'ignore', 'inherit', theirs, this.#controlFd],
      env: { LD_PRELOAD: zygoteLibrary, UBLK_SUPERVISOR_NURSERY: '1' },
      // Not in our process group: a terminal's Ctrl-C is for the supervisor, which then stops the devices in order.
      detached: true,
    });
    closeSync(theirs);
    const ended = new Promise<never>((_, reject) => {
      const end = (reason: string, code: ErrorCode = 'ZYGOTE'): void => {
        if (this.#running?.child === child) this.#running = null;
        closeSync(socket);
        reject(new SupervisorError(`starting a zygote failed: ${reason}`, { code }));
      };
      child.once('error', (error: NodeJS.ErrnoException) =>
        end(`${error.message}, for its nursery`, errorCode(error.code)),
      );
      child.once('exit', (code, signal) => {
        const how = signal ?? `exit code ${String(code)}`;
        end(`its nursery ended with ${how}; was ${zygoteLibrary} built for this machine?`);
      });
    });
    // Between two forks the event loop need not wait for it.
    ended.catch(() => undefined);
    return { forks: false, child, socket, ended };
  }
}
