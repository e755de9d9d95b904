import { closeSync, rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf, SupervisorError } from '../errors.js';
import type { Log } from './device-log.js';
import type { HeldByZygote } from './kernel.js';
import { findZygote, startZygote, type ZygoteConnection } from './zygote-connection.js';
import { Zygote, type ExitNotice } from './zygote.js';

/** Of a zygote, with its number; a later one's is higher. */
const SOCKET = /^zygote-([1-9][0-9]{0,8})\.sock$/;

/** What zygotes hold that an earlier supervisor left. */
export interface LeftZygotes {
  /** One a device. */
  readonly held: readonly HeldByZygote[];
  readonly pids: readonly number[];
  /** There is one, or may be, with which nothing can be done but to end it. */
  readonly unusable: boolean;
}

/** A zygote of the code that is installed now, beside the one that forks. */
export interface Successor {
  readonly zygote: number;
  /** It forks from now on, and the one before ends once it serves nothing any more. */
  accept(): void;
  /** The other way round. */
  discard(): void;
}

/**
 * Keeps a zygote running that forks what is new: starts it when it is first needed and again after it died. Others live
 * beside it as long as they serve something: in an upgrade, and after one that did not work.
 */
export class ZygoteKeeper {
  readonly #directory: string;
  readonly #controlFd: number;
  readonly #log: Log;
  readonly #onExit: (notice: ExitNotice) => void;
  readonly #running = new Map<number, Zygote>();
  #current: Zygote | null = null;
  #starting: Promise<Zygote> | null = null;
  #lastNumber = 0;
  #retired = false;

  /** `directory`: for their sockets. */
  constructor(options: { directory: string; controlFd: number; log: Log; onExit: (notice: ExitNotice) => void }) {
    this.#directory = options.directory;
    this.#controlFd = options.controlFd;
    this.#log = options.log;
    this.#onExit = options.onExit;
  }

  /**
   * The zygote of that number unless it is gone or to end, else the one that forks what is new. Rejects when none can be
   * started; the next call tries again.
   */
  async get(number: number | null = null): Promise<Zygote> {
    if (this.#retired) throw new SupervisorError('the supervisor has ended', { code: 'ZYGOTE' });
    const wanted = number === null ? undefined : this.#running.get(number);
    const zygote = wanted?.expiring === false ? wanted : this.#current;
    if (zygote !== null) return zygote;
    this.#starting ??= this.#startCurrent();
    return this.#starting;
  }

  /** undefined: it is gone. */
  running(number: number): Zygote | undefined {
    return this.#running.get(number);
  }

  /**
   * Takes over the zygotes that an earlier supervisor left, most often one; there are more where it was killed in the
   * middle of an upgrade. Call before anything asks for a zygote.
   */
  async adopt(): Promise<LeftZygotes> {
    const numbers = (await readdir(this.#directory)).flatMap((name) => Number(SOCKET.exec(name)?.[1] ?? []));
    const held = new Map<number, HeldByZygote>();
    let unusable = numbers.length === 0;
    for (const number of numbers.sort((a, b) => a - b)) {
      this.#lastNumber = number;
      try {
        const connection = await findZygote(this.#socketOf(number));
        if (connection === null) this.#removeSocket(number);
        else await this.#adoptOne(this.#use(connection, number), held);
      } catch (error) {
        if (!(error instanceof SupervisorError)) throw error;
        this.#log.warn({ code: error.code }, `${messageOf(error)}; its devices go on with another one`);
        this.#running.delete(number);
        unusable = true;
      }
    }
    const zygotes = [...this.#running.values()];
    this.#current = zygotes.findLast(({ expiring }) => !expiring) ?? null;
    for (const zygote of zygotes) if (zygote !== this.#current) zygote.expire();
    return {
      held: [...held.values()],
      pids: zygotes.map(({ pid }) => pid),
      unusable: unusable || zygotes.length === 0,
    };
  }

  /** Of a device in the middle of a hand-over each of two zygotes holds a generation. */
  async #adoptOne(zygote: Zygote, held: Map<number, HeldByZygote>): Promise<void> {
    for (const generation of await zygote.inventory()) {
      const one = { ...generation, zygote: zygote.number };
      const other = held.get(one.deviceId);
      const [newer, older] = other === undefined || other.generation < one.generation ? [one, other] : [other, one];
      held.set(newer.deviceId, newer);
      if (older !== undefined) await this.forget(older);
    }
  }

  /** Nobody adopts this: lets go of the backend's files, here and there, so that their locks are free. */
  async forget({ deviceId, sharedPage, files, zygote }: HeldByZygote): Promise<void> {
    for (const fd of [sharedPage, ...files]) closeSync(fd);
    // A zygote that does not answer is ended, and with it goes what it kept.
    await this.#running
      .get(zygote)
      ?.forget(deviceId)
      .catch(() => undefined);
  }

  /** Starts another zygote; rejects when that is not possible, or it is of a build that this supervisor cannot talk to. */
  async startSuccessor(): Promise<Successor> {
    const before = await this.get();
    const zygote = await this.#start();
    return {
      zygote: zygote.number,
      accept: () => {
        this.#current = zygote.alive ? zygote : null;
        before.expire();
      },
      discard: () => {
        zygote.expire();
      },
    };
  }

  /** Ends the zygotes and every process that they forked. */
  async retire(): Promise<void> {
    this.#retired = true;
    await this.#starting?.catch(() => undefined);
    await Promise.all([...this.#running.values()].map((zygote) => zygote.retire()));
  }

  /** Leaves the zygotes and what they serve to another supervisor. */
  disconnect(): void {
    this.#retired = true;
    for (const zygote of this.#running.values()) zygote.disconnect();
  }

  async #startCurrent(): Promise<Zygote> {
    try {
      const zygote = await this.#start();
      if (zygote.alive) this.#current = zygote;
      return zygote;
    } finally {
      this.#starting = null;
    }
  }

  async #start(): Promise<Zygote> {
    this.#lastNumber += 1;
    const number = this.#lastNumber;
    return this.#use(await startZygote(this.#socketOf(number), this.#controlFd), number);
  }

  #use(connection: ZygoteConnection, number: number): Zygote {
    const zygote = new Zygote(connection, number, this.#onExit);
    this.#running.set(number, zygote);
    void zygote.closed.then(() => {
      this.#running.delete(number);
      this.#removeSocket(number);
      if (this.#current === zygote) this.#current = null;
      if (this.#retired || zygote.expiring) return;
      this.#log.warn({ pid: zygote.pid }, 'the zygote died; starting another when it is needed');
    });
    return zygote;
  }

  #socketOf(number: number): string {
    return join(this.#directory, `zygote-${String(number)}.sock`);
  }

  #removeSocket(number: number): void {
    rmSync(this.#socketOf(number), { force: true });
  }
}
