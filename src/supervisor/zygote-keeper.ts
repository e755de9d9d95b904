import type { Log } from './device-log.js';
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

  /** Ends the zygote and every process that it forked. */
  async retire(): Promise<void> {
    this.#retired = true;
    await (await this.#current)?.retire();
  }

  async #start(): Promise<Zygote> {
    try {
      const zygote = await Zygote.start(this.#socketPath, this.#controlFd, this.#onExit);
      void zygote.closed.then(() => {
        this.#current = null;
        if (!this.#retired) this.#log.warn({ pid: zygote.pid }, 'the zygote died; starting another when it is needed');
      });
      return zygote;
    } catch (error) {
      this.#current = null;
      throw error;
    }
  }
}
