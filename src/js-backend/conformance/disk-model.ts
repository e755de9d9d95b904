import { SETTLED, UNFILLED } from './messages.js';

const SECTOR = 512;

/** What a disk must hold, as far as that is known: per block, data of its size. */
export class DiskModel {
  readonly #blockSize: number;
  readonly #known = new Map<number, Uint8Array>();
  /** Discarded blocks may read as anything, and as something else the next time, until they are written. */
  readonly #discarded = new Set<number>();

  constructor(blockSize: number) {
    this.#blockSize = blockSize;
  }

  /** Forgets what blocks hold, so that what comes does not depend on what was. */
  startOver(): void {
    this.#known.clear();
  }

  write(block: number, data: Uint8Array): void {
    this.#each(block, data, (each, content) => {
      this.#known.set(each, content);
      this.#discarded.delete(each);
    });
  }

  discard(block: number, blocks: number): void {
    for (let each = block; each < block + blocks; each++) {
      this.#known.delete(each);
      this.#discarded.add(each);
    }
  }

  /** Learns what was not known. undefined: nothing contradicts what is; else what is wrong. */
  read(block: number, data: Uint8Array): string | undefined {
    let fault: string | undefined;
    this.#each(block, data, (each, found) => {
      const expected = this.#known.get(each);
      if (expected) fault ??= difference(each * this.#blockSize, expected, found);
      else if (isAll(found, UNFILLED)) fault ??= `block ${each}: ${NOT_FILLED}`;
      else if (!this.#discarded.has(each)) this.#known.set(each, Uint8Array.from(found));
    });
    return fault;
  }

  /** What is known, as ranges of at most `most` blocks, to be read once more. */
  knownRanges(most: number): { readonly block: number; readonly blocks: number }[] {
    const ranges: { block: number; blocks: number }[] = [];
    for (const block of [...this.#known.keys()].sort((a, b) => a - b)) {
      const last = ranges.at(-1);
      if (last && last.block + last.blocks === block && last.blocks < most) last.blocks++;
      else ranges.push({ block, blocks: 1 });
    }
    return ranges;
  }

  #each(block: number, data: Uint8Array, visit: (block: number, content: Uint8Array) => void): void {
    for (let start = 0; start < data.length; start += this.#blockSize) {
      visit(block + start / this.#blockSize, data.subarray(start, start + this.#blockSize));
    }
  }
}

/** Data for one write that tells what it is: every sector holds `stamp`, its own number and a mixture of both. */
export function stampedData(stamp: number, offset: number, length: number): Uint8Array {
  const words = new Uint32Array(length / 4);
  for (let sector = 0; sector < length / SECTOR; sector++) {
    const number = offset / SECTOR + sector;
    let mixed = Math.imul(stamp, 0x9e3779b1) ^ Math.imul(number, 0x85ebca6b);
    const first = (sector * SECTOR) / 4;
    words[first] = stamp;
    words[first + 1] = number;
    for (let word = first + 2; word < first + SECTOR / 4; word++) {
      mixed ^= mixed << 13;
      mixed ^= mixed >>> 17;
      mixed ^= mixed << 5;
      words[word] = mixed;
    }
  }
  return new Uint8Array(words.buffer);
}

const NOT_FILLED = 'the buffer was not filled when the call settled';

function difference(offset: number, expected: Uint8Array, found: Uint8Array): string | undefined {
  if (Buffer.compare(expected, found) === 0) return undefined;
  const at = expected.findIndex((byte, index) => byte !== found[index]);
  const sector = at - (at % SECTOR);
  const place = `byte ${offset + at} is ${hex(found[at])}, expected ${hex(expected[at])}`;
  return `${place}: ${origin(offset + sector, found.subarray(sector, sector + SECTOR))}`;
}

/** Where the wrong content of the sector at `offset` comes from. */
function origin(offset: number, sector: Uint8Array): string {
  if (isAll(sector, UNFILLED)) return NOT_FILLED;
  if (isAll(sector, SETTLED)) return 'the buffer of a write was read after the call had settled';
  if (isAll(sector, 0)) return 'zeros';
  const [stamp = 0, number = 0] = new Uint32Array(Uint8Array.from(sector).buffer);
  const at = number * SECTOR;
  if (!Buffer.from(stampedData(stamp, at, SECTOR)).equals(sector)) return 'data that was not written';
  return at === offset ? 'data of another write to this place' : `data that was written to byte ${at}`;
}

function isAll(bytes: Uint8Array, value: number): boolean {
  return bytes.every((byte) => byte === value);
}

function hex(byte = 0): string {
  return `0x${byte.toString(16).padStart(2, '0')}`;
}
