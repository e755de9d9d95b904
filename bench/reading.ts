import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

/** A client that reads from a device every millisecond, in a thread of its own: what the bench does delays no read. */
export class Reading {
  readonly #worker: Worker;

  private constructor(worker: Worker) {
    this.#worker = worker;
  }

  static async begin(path: string): Promise<Reading> {
    const worker = new Worker(new URL('reader.js', import.meta.url), { workerData: path });
    await once(worker, 'message');
    return new Reading(worker);
  }

  /** How long the longest read took, in milliseconds. Rejects when one failed. */
  async end(): Promise<number> {
    const answer = once(this.#worker, 'message');
    this.#worker.postMessage('end');
    const [longest] = (await answer) as [number];
    return longest;
  }
}
