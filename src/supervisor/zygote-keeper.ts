import type { Log } from './device-log.js';
import type { HeldGeneration } from '../native/binding.js';
import { findZygote, startZygote, type ZygoteConnection } from './zygote-connection.js';
import { Zygote, type ExitNotice } from './zygote.js';

/** Keeps one zygote running: starts it when it is first needed and again after it died. */
export class ZygoteKeeper {
  readonly #socketPath: string;
  readonly #controlFd: number;
  readonly #log: Log;
  readonly #onExit: (notice: ExitNotice) => void;
  #current: Promise<Zygote> | null = null;
  #retired = false;

  constructor(options: { socketPath: string; controlFd: number; log: Log; onExit: (notice: ExitNotice) => void }) {
    this.#socketPath = options.socketPath;
    this.#controlFd = options.controlFd;
    this.#log = options.log;
    this.#onExit = options.onExit;
  }

  /** The running zygote. Rejects when none can be started; the next call tries again. */
  get(): Promise<Zygote> {
    this.#current ??= this.#start();
    return this.#current;
  }

  /**
   * Takes over the zygote that an earlier supervisor left, and returns what it holds; null when there is none. Rejects
   * when there is one with which nothing can be done but to end it. Call before anything asks for a zygote.
   */
  async adopt(): Promise<readonly HeldGeneration[] | null> {
    const connection = await findZygote(this.#socketPath);
    if (connection === null) return null;
    const zygote = this.#use(connection);
    this.#current = Promise.resolve(zygote);
    return zygote.inventory();
  }

  /** Ends the zygote and every process that it forked. */
  async retire(): Promise<void> {
    this.#retired = true;
    await (await this.#current)?.retire();
  }

  async #start(): Promise<Zygote> {
    try {
      return this.#use(await startZygote(this.#socketPath, this.#controlFd));
    } catch (error) {
      this.#current = null;
      throw error;
    }
  }

  #use(connection: ZygoteConnection): Zygote {
    const zygote = new Zygote(connection, this.#onExit);
    void zygote.closed.then(() => {
      this.#current = null;
      if (!this.#retired) this.#log.warn({ pid: zygote.pid }, 'the zygote died; starting another when it is needed');
    });
    return zygote;
  }
}
