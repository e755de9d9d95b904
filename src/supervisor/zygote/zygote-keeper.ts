import { rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { messageOf, SupervisorError } from '../../errors.js';
import type { Log } from '../../log/log.js';
import { fewAtOnce } from '../../timing/few-at-once.js';
import { Nursery } from './nursery.js';
import { zygoteSocket } from '../../api/places.js';
import { findZygote, type ZygoteConnection } from './zygote-connection.js';
import { closeHeld, type HeldByZygote, Zygote } from './zygote.js';

/** The name of a zygote's socket, with its number; a later zygote's is higher. */
const SOCKET = /^zygote-([1-9][0-9]{0,8})\.sock$/;

/** What zygotes hold that an earlier supervisor left. */
export interface LeftZygotes {
  /** One a device. */
  readonly held: readonly HeldByZygote[];
  /** The pids of the zygotes that can be talked to. */
  readonly pids: readonly number[];
}

/** A nursery of the code that is installed now, beside the one that forks. */
export interface Successor {
  readonly nursery: number;
  /** It forks from now on. */
  accept(): void;
  /** The one before goes on. */
  discard(): void;
}

/**
 * Keeps the zygotes, one for each device, and the nursery that forks them. There are two nurseries in an upgrade: the one
 * of the code before stays until every device is served by the other one's.
 */
export class ZygoteKeeper {
  readonly #directory: string;
  readonly #controlFd: number;
  readonly #log: Log;
  readonly #running = new Map<number, Zygote>();
  readonly #nurseries = new Map<number, Nursery>();
  #current: Nursery;
  #lastNumber = 0;
  #lastNursery = 0;
  #ended = false;

  /** `directory`: for the zygotes' sockets. */
  constructor(options: { directory: string; controlFd: number; log: Log }) {
    this.#directory = options.directory;
    this.#controlFd = options.controlFd;
    this.#log = options.log;
    this.#current = this.#newNursery();
  }

  /** `wanted` if there is that nursery, else the one that forks what is new. */
  nursery(wanted: number | null): number {
    return wanted !== null && this.#nurseries.has(wanted) ? wanted : this.#current.number;
  }

  /** A new zygote of that nursery. Rejects when none can be started; the next call tries again. */
  async fork(nursery: number): Promise<Zygote> {
    if (this.#ended) throw new SupervisorError('the supervisor has ended', { code: 'ZYGOTE' });
    const from = this.#nurseries.get(nursery) ?? this.#current;
    this.#lastNumber += 1;
    const number = this.#lastNumber;
    return this.#use(await from.fork(this.#socketOf(number)), number, from.number);
  }

  /** undefined: it is gone. */
  running(number: number): Zygote | undefined {
    return this.#running.get(number);
  }

  /** Takes over the zygotes that an earlier supervisor left. Call before anything asks for a zygote. */
  async adopt(): Promise<LeftZygotes> {
    const numbers = (await readdir(this.#directory)).flatMap((name) => Number(SOCKET.exec(name)?.[1] ?? []));
    this.#lastNumber = Math.max(0, ...numbers);
    const held = new Map<number, HeldByZygote>();
    for (const one of await this.#adoptEach(numbers)) {
      // In the middle of an upgrade each of two zygotes holds a generation of the same device.
      const other = held.get(one.deviceId);
      const [newer, older] = other === undefined || other.generation < one.generation ? [one, other] : [other, one];
      held.set(newer.deviceId, newer);
      if (older !== undefined) await this.forget(older);
    }
    return { held: [...held.values()], pids: [...this.#running.values()].map(({ pid }) => pid) };
  }

  async #adoptEach(numbers: readonly number[]): Promise<readonly HeldByZygote[]> {
    const outcomes = await fewAtOnce(numbers, (number) => this.#adoptOne(number));
    return outcomes.flatMap((outcome) => {
      if (outcome.status === 'rejected') throw outcome.reason as Error;
      return outcome.value;
    });
  }

  async #adoptOne(number: number): Promise<HeldByZygote[]> {
    try {
      const connection = await findZygote(this.#socketOf(number));
      if (connection === null) {
        this.#removeSocket(number);
        return [];
      }
      const zygote = this.#use(connection, number, this.#current.number);
      const generation = await zygote.inventory();
      if (generation !== null) return [{ ...generation, zygote: number }];
      await zygote.retire();
    } catch (error) {
      if (!(error instanceof SupervisorError)) throw error;
      this.#log.warn({ code: error.code }, `${messageOf(error)}; its device goes on with another one`);
      this.#removeSocket(number);
    }
    return [];
  }

  /** For what is not adopted: this process and the zygote close the backend's files, so that their locks are free. */
  async forget(held: HeldByZygote): Promise<void> {
    closeHeld(held);
    await this.#running.get(held.zygote)?.retire();
  }

  /** Starts another nursery; rejects when that is not possible, or it is of a build that this supervisor cannot talk to. */
  async startSuccessor(): Promise<Successor> {
    const nursery = this.#newNursery();
    const discard = (): void => {
      this.#nurseries.delete(nursery.number);
      void nursery.close();
    };
    try {
      const trial = await this.fork(nursery.number);
      await trial.retire();
    } catch (error) {
      discard();
      throw error;
    }
    return {
      nursery: nursery.number,
      accept: () => {
        const before = this.#current;
        this.#current = nursery;
        this.#nurseries.delete(before.number);
        void before.close();
      },
      discard,
    };
  }

  /** Ends the zygotes and every process that they forked. */
  async retire(): Promise<void> {
    await this.#closeNurseries();
    await Promise.all([...this.#running.values()].map((zygote) => zygote.retire()));
  }

  /** Leaves the zygotes and what they serve to another supervisor. */
  async disconnect(): Promise<void> {
    await this.#closeNurseries();
    for (const zygote of this.#running.values()) zygote.disconnect();
  }

  async #closeNurseries(): Promise<void> {
    this.#ended = true;
    await Promise.all([...this.#nurseries.values()].map((nursery) => nursery.close()));
  }

  #newNursery(): Nursery {
    this.#lastNursery += 1;
    const nursery = new Nursery(this.#lastNursery, this.#controlFd);
    this.#nurseries.set(nursery.number, nursery);
    return nursery;
  }

  #use(connection: ZygoteConnection, number: number, nursery: number): Zygote {
    let zygote: Zygote;
    try {
      zygote = new Zygote(connection, { number, nursery });
    } catch (error) {
      // Without a supervisor, and without anything to serve, it ends.
      connection.channel.close();
      throw error;
    }
    this.#running.set(number, zygote);
    void zygote.closed.then(() => {
      this.#running.delete(number);
      this.#removeSocket(number);
      if (!zygote.retired) this.#log.warn({ pid: zygote.pid }, 'a zygote died; its device goes on with another one');
    });
    return zygote;
  }

  #socketOf(number: number): string {
    return zygoteSocket(this.#directory, number);
  }

  #removeSocket(number: number): void {
    rmSync(this.#socketOf(number), { force: true });
  }
}
