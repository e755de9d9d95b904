import { existsSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { SupervisorError } from '../../errors.js';
import { openBlockDevices, type OpenBlockDevices } from '../../native/addon/block-devices.js';
import { openersOf, readSystemUsers, usersOf } from './block-device-users.js';
import { within } from '../../timing/deadline.js';
import { fewAtOnce } from '../../timing/few-at-once.js';
import type { Claim, ClaimedFor } from './kernel.js';
import type { HeldProcess } from '../zygote/zygote.js';

/** A process that has the device open for longer uses it; udev, which opens a device after each write, is gone by then. */
const PATIENCE_MS = 1_000;
const POLL_MS = 50;
/** Far more than it takes; every thread that could search may be in the hands of a file system that hangs. */
const SEARCH_DEADLINE_MS = 10_000;

interface Held {
  /** Has the device open with O_EXCL. */
  readonly process: Promise<HeldProcess>;
  owners: number;
  /** The look for open descriptors found none. */
  unopened: boolean;
}

/**
 * Exclusive claims of block devices. The kernel refuses one while a file system, swap, or a device that was made of it
 * has it or a partition of it claimed, and refuses those while it is ours. Plain openers, and loop devices, claim nothing
 * and are looked for.
 */
export class Claims {
  readonly #hold: (id: number) => Promise<HeldProcess>;
  readonly #held = new Map<number, Held>();
  /** The pids of the processes in #held. */
  readonly #pids = new Set<number>();
  #search: Promise<OpenBlockDevices> | null = null;
  #nextSearch: Promise<OpenBlockDevices> | null = null;

  /** `hold` forks the process that claims a device, until it is released; rejects with EBUSY when the kernel refuses. */
  constructor(hold: (id: number) => Promise<HeldProcess>) {
    this.#hold = hold;
  }

  /**
   * All of them or none. Who claims what is claimed already shares it; with `once`, also what was found of its openers. Each
   * search reads the descriptors of all processes, hundreds of which are ours where there are hundreds of devices. Rejects
   * with `IN_USE` and who the users are.
   */
  async take(ids: readonly number[], purpose: ClaimedFor, { once = false } = {}): Promise<Claim> {
    const taken = new Map<number, () => Promise<void>>();
    const claim = {
      release: async (): Promise<void> => {
        await Promise.all([...taken.values()].map((release) => release()));
      },
    };
    const deadline = performance.now() + PATIENCE_MS;
    try {
      for (;;) {
        const refused = await this.#takeFree(ids, taken);
        const opened = await this.#opened(once ? ids.filter((id) => this.#held.get(id)?.unopened !== true) : ids);
        if (refused.length === 0 && opened.length === 0) return claim;
        if (performance.now() > deadline) throw await this.inUse([...new Set([...refused, ...opened])], purpose);
        await setTimeout(POLL_MS);
      }
    } catch (error) {
      await claim.release();
      throw error;
    }
  }

  /** Ends the claim of this device for all that share it. */
  async giveUp(id: number): Promise<void> {
    const held = this.#held.get(id);
    if (held !== undefined) await this.#end(id, held);
  }

  /** Returns whom the kernel refused. */
  async #takeFree(ids: readonly number[], taken: Map<number, () => Promise<void>>): Promise<number[]> {
    const missing = ids.filter((id) => !taken.has(id));
    const outcomes = await fewAtOnce(missing, (id) => this.#take(id));
    const refused: number[] = [];
    const failures: unknown[] = [];
    for (const [index, outcome] of outcomes.entries()) {
      const id = missing[index];
      if (id === undefined) continue;
      if (outcome.status === 'fulfilled') taken.set(id, outcome.value);
      else if (outcome.reason instanceof SupervisorError && outcome.reason.code === 'EBUSY') refused.push(id);
      else if (existsSync(`/sys/block/ublkb${id}`)) failures.push(outcome.reason);
    }
    if (failures.length > 0) throw failures[0];
    return refused;
  }

  async #take(id: number): Promise<() => Promise<void>> {
    const held = this.#held.get(id) ?? this.#begin(id);
    held.owners += 1;
    let released: Promise<void> | null = null;
    const release = (): Promise<void> => {
      if (released !== null) return released;
      held.owners -= 1;
      released = held.owners === 0 ? this.#end(id, held) : Promise.resolve();
      return released;
    };
    try {
      await held.process;
    } catch (error) {
      await release();
      throw error;
    }
    return release;
  }

  #begin(id: number): Held {
    const held = { process: this.#hold(id), owners: 0, unopened: false };
    this.#held.set(id, held);
    const watch = async ({ pid, ended }: HeldProcess): Promise<void> => {
      this.#pids.add(pid);
      await ended;
      this.#pids.delete(pid);
      this.#drop(id, held);
    };
    held.process.then(watch).catch(() => undefined);
    return held;
  }

  async #end(id: number, held: Held): Promise<void> {
    this.#drop(id, held);
    const process = await held.process.catch(() => null);
    await process?.release();
  }

  #drop(id: number, held: Held): void {
    if (this.#held.get(id) === held) this.#held.delete(id);
  }

  /** Which of the devices are open without a claim. */
  async #opened(ids: readonly number[]): Promise<number[]> {
    if (ids.length === 0) return [];
    const claims = ids.map((id) => this.#held.get(id));
    const open = await this.#openBlockDevices();
    const openers = await Promise.all(ids.map((id) => openersOf(id, open, this.#pids)));
    const isOpen = (index: number): boolean => openers[index]?.length !== 0;
    for (const [index, claim] of claims.entries()) if (claim) claim.unopened = !isOpen(index);
    return ids.filter((_, index) => isOpen(index));
  }

  /** The error for devices that are in use. */
  async inUse(ids: readonly number[], purpose: ClaimedFor): Promise<SupervisorError> {
    const system = await readSystemUsers(await this.#openBlockDevices());
    const ours = new Set(this.#pids);
    const lines = ids.map(async (id) => {
      const users = (await usersOf(id, system, ours)).join(', ');
      const failed = `${purpose} /dev/ublkb${id} failed: it is in use by ${users} (EBUSY)`;
      return `${failed}; unmount or close it, or use --force`;
    });
    return new SupervisorError((await Promise.all(lines)).join('\n'), { code: 'IN_USE' });
  }

  /** All that is open now. There is one search at a time; who asks while it is under way shares the next one. */
  #openBlockDevices(): Promise<OpenBlockDevices> {
    if (this.#search === null) return this.#beginSearch();
    this.#nextSearch ??= this.#search.then(
      () => this.#beginSearch(),
      () => this.#beginSearch(),
    );
    return this.#nextSearch;
  }

  #beginSearch(): Promise<OpenBlockDevices> {
    this.#nextSearch = null;
    const search = within('searching /proc for who has block devices open', SEARCH_DEADLINE_MS, openBlockDevices());
    this.#search = search;
    const over = (): void => {
      if (this.#search === search) this.#search = null;
    };
    search.then(over, over);
    return search;
  }
}
