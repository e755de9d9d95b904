import { constants, closeSync, openSync, readSync, writeFileSync } from 'node:fs';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { fileURLToPath } from 'node:url';
import { takeSlot } from '../src/js-backend/conformance/direct-file.js';

/**
 * What a program sees that uses the device: a thread that reads a file, block by block and past the page cache, measures
 * how long each read takes and looks at what it got.
 */

const BLOCK = 4096;
const BLOCKS = 256;

/** Places in the shared array. */
const READS = 0;
const ERRORS = 1;
const WRONG = 2;
const LONGEST_US = 3;
const STOP = 4;

export class Reader {
  readonly #worker: Worker;
  readonly #counters: Int32Array;
  readonly #ended: Promise<void>;

  /** @param path where to make the file that is read */
  constructor(path: string) {
    const blocks = Buffer.alloc(BLOCKS * BLOCK);
    for (let block = 0; block < BLOCKS; block += 1) blocks.fill(block, block * BLOCK, (block + 1) * BLOCK);
    writeFileSync(path, blocks, { flush: true });
    const memory = new SharedArrayBuffer(32);
    this.#counters = new Int32Array(memory);
    this.#worker = new Worker(fileURLToPath(import.meta.url), { workerData: { path, memory } satisfies WorkerData });
    this.#ended = new Promise((resolve) => {
      this.#worker.once('exit', () => resolve());
    });
  }

  get reads(): number {
    return Atomics.load(this.#counters, READS);
  }

  get errors(): number {
    return Atomics.load(this.#counters, ERRORS);
  }

  /** Reads that returned something else than what was written. */
  get wrong(): number {
    return Atomics.load(this.#counters, WRONG);
  }

  /** The longest read since this was asked the last time, in milliseconds. */
  takeLongestMs(): number {
    return Atomics.exchange(this.#counters, LONGEST_US, 0) / 1000;
  }

  /** Resolves when the read that is outstanding has ended. */
  async stop(): Promise<void> {
    Atomics.store(this.#counters, STOP, 1);
    await this.#ended;
  }
}

interface WorkerData {
  readonly path: string;
  readonly memory: SharedArrayBuffer;
}

function readUntilStopped({ path, memory }: WorkerData): void {
  const counters = new Int32Array(memory);
  const buffer = takeSlot().subarray(0, BLOCK);
  const file = openSync(path, constants.O_RDONLY | constants.O_DIRECT);
  while (Atomics.load(counters, STOP) === 0) {
    const block = counters[READS] ?? 0;
    const began = performance.now();
    try {
      const bytes = readSync(file, buffer, 0, BLOCK, (block % BLOCKS) * BLOCK);
      if (bytes !== BLOCK || buffer.some((byte) => byte !== block % BLOCKS)) Atomics.add(counters, WRONG, 1);
    } catch {
      Atomics.add(counters, ERRORS, 1);
    }
    const microseconds = Math.round((performance.now() - began) * 1000);
    if (microseconds > Atomics.load(counters, LONGEST_US)) Atomics.store(counters, LONGEST_US, microseconds);
    Atomics.add(counters, READS, 1);
    // A read a millisecond shows every pause and leaves the processors to others.
    Atomics.wait(counters, STOP, 0, 1);
  }
  closeSync(file);
}

if (!isMainThread && parentPort) readUntilStopped(workerData as WorkerData);
