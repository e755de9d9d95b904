import { execFile, type ChildProcess } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { messageOf, SupervisorError } from '../../errors.js';
import { watchCloses, type CloseWatch } from '../../native/addon/close-watch.js';
import type { Log } from '../../log/log.js';

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** What partx says of a disk without a table. */
const NO_TABLE = 'failed to read partition table';
/** MBR types of an extended partition: two sectors to partx and the kernel, whatever the table says; none where a block is longer. */
const CONTAINERS: readonly string[] = ['0x5', '0xf', '0x85'];

/** Start and length in units of 512 bytes, as partx and sysfs have them. */
interface Partition {
  readonly number: number;
  readonly start: number;
  readonly sectors: number;
}

/**
 * Makes the partitions of a device, /dev/ublkbNpM, those of the table on it. The kernel does not look itself, because a queue
 * process that dies under its eyes wedges ublk; partx(8) does, a process that can wait for the device with nobody waiting for it.
 */
export class Partitions {
  readonly #device: string;
  readonly #log: Log;
  readonly #onChange: (id: number, numbers: readonly number[]) => void;
  #id = 0;
  #following = false;
  #watch: CloseWatch | null = null;
  #running: ChildProcess | null = null;
  #looking: Promise<readonly number[]> | null = null;
  /** The table may have changed since the look that is under way began. */
  #again = false;

  /** `onChange`: told of the partitions that /dev/ublkbN has now; must not throw. */
  constructor(device: string, log: Log, onChange: (id: number, numbers: readonly number[]) => void) {
    this.#device = device;
    this.#log = log;
    this.#onChange = onChange;
  }

  get #node(): string {
    return `ublkb${this.#id}`;
  }

  /** Follows the live device /dev/ublkbN: looks now, and after each close by a process that could write to it. */
  follow(id: number): void {
    this.#id = id;
    this.#following = true;
    try {
      this.#watch ??= watchCloses(`/dev/${this.#node}`, () => this.#lookAgain());
    } catch (error) {
      this.#warn(`watching for another partition table failed: ${messageOf(error)}`);
    }
    this.#lookAgain();
  }

  /** Resolves with the partitions when they are those of the table that is there now; rejects with why they are not. */
  look(): Promise<readonly number[]> {
    this.#again = true;
    this.#looking ??= this.#look().finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  /** The log has what went wrong. */
  #lookAgain(): void {
    this.look().catch(() => undefined);
  }

  /** Resolves when no look is under way. */
  get settled(): Promise<unknown> {
    return Promise.resolve(this.#looking).catch(() => undefined);
  }

  /** There are to be none any more; those that are in use stay. */
  async drop(): Promise<void> {
    this.leave();
    await this.settled;
    const [failed] = await this.#remove(() => true);
    if (failed !== undefined) this.#warn(`removing partitions failed: ${messageOf(failed)}`);
  }

  /** The device goes, and its partitions with it. */
  leave(): void {
    if (!this.#following) return;
    this.#following = false;
    this.#watch?.end();
    this.#watch = null;
    this.#again = false;
    this.#running?.kill('SIGKILL');
    this.#onChange(this.#id, []);
  }

  async #look(): Promise<readonly number[]> {
    let failed: string | undefined;
    let numbers: readonly number[] = [];
    while (this.#again) {
      this.#again = false;
      failed = await this.#makeThem().then(() => undefined, messageOf);
      // It may have gone meanwhile.
      if (!this.#following) throw this.#error('it is not live');
      if (failed !== undefined) this.#warn(`looking for partitions failed: ${failed}`);
      numbers = await this.#numbers();
      this.#onChange(this.#id, numbers);
    }
    if (failed !== undefined) throw this.#error(failed);
    return numbers;
  }

  /** Touches none that is right already: to partx, bringing a partition up to date is to remove it and to add it again. */
  async #makeThem(): Promise<void> {
    const wanted = await this.#table();
    const there = new Map((await this.#present()).map((partition) => [partition.number, partition]));
    const starts = new Map(wanted.map(({ number, start }) => [number, start]));
    // First, as what comes may lie where they are.
    const failures = await this.#remove((number) => starts.get(number) !== there.get(number)?.start);
    for (const { number, start, sectors, container } of wanted) {
      const { start: oldStart, sectors: oldSectors } = there.get(number) ?? {};
      const right = start === oldStart && (container || sectors === oldSectors);
      if (right) continue;
      await this.#run('partx', '--update', '--nr', String(number)).catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }

  /** Returns the errors of the partitions that stay because they are in use. */
  async #remove(unwanted: (number: number) => boolean): Promise<unknown[]> {
    const failures: unknown[] = [];
    for (const number of (await this.#numbers()).filter(unwanted)) {
      await this.#run('delpart', String(number)).catch((error: unknown) => failures.push(error));
    }
    return failures;
  }

  /** What the table on the device says. */
  async #table(): Promise<readonly (Partition & { readonly container: boolean })[]> {
    const table = await this.#run('partx', '--show', '--noheadings', '--output', 'NR,START,SECTORS,TYPE').catch(
      (error: unknown) => {
        if (messageOf(error).includes(NO_TABLE)) return '';
        throw error;
      },
    );
    return table
      .split('\n')
      .filter((line) => line.trim() !== '')
      .map((line) => {
        const [number, start, sectors, type = ''] = line.trim().split(/\s+/);
        const container = CONTAINERS.includes(type);
        return { number: Number(number), start: Number(start), sectors: Number(sectors), container };
      });
  }

  /** The partitions that the kernel has. */
  async #present(): Promise<readonly Partition[]> {
    const numbers = await this.#numbers();
    return Promise.all(
      numbers.map(async (number) => {
        const read = async (attribute: string): Promise<number> =>
          Number(await readFile(`/sys/block/${this.#node}/${this.#node}p${number}/${attribute}`, 'latin1'));
        return { number, start: await read('start'), sectors: await read('size') };
      }),
    );
  }

  async #numbers(): Promise<readonly number[]> {
    const names = await readdir(`/sys/block/${this.#node}`).catch(() => []);
    return names
      .filter((name) => name.startsWith(`${this.#node}p`))
      .map((name) => Number(name.slice(this.#node.length + 1)))
      .sort((a, b) => a - b);
  }

  /** What it prints. Rejects with what it says. */
  #run(program: 'partx' | 'delpart', ...args: readonly string[]): Promise<string> {
    return new Promise((resolve, reject) => {
      const options = { env: { PATH, LC_ALL: 'C' }, maxBuffer: 64 * 1024 };
      const node = `/dev/${this.#node}`;
      const all = program === 'partx' ? [...args, node] : [node, ...args];
      this.#running = execFile(program, all, options, (error, stdout, stderr) => {
        this.#running = null;
        if (error === null) resolve(stdout);
        else reject(new Error(stderr.trim().split('\n').join('; ') || messageOf(error)));
      });
    });
  }

  #error(reason: string): SupervisorError {
    const device = this.#device;
    const message = `looking for partitions of device ${device} failed: ${reason}`;
    return new SupervisorError(message, { code: 'REFUSED', device });
  }

  #warn(what: string): void {
    this.#log.warn({ device: this.#device }, `device ${this.#device}: ${what}`);
  }
}
