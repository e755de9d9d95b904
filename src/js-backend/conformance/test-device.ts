import type { Announced } from '../load.js';
import { assertSame, type Disk } from './disk.js';
import { DiskModel, stampedData } from './disk-model.js';
import type { Request } from './messages.js';
import { QUEUES, conflict, describeOperation, operation, type Operation, type OperationKind } from './operations.js';

/** The longest request, in bytes. */
const LARGEST_REQUEST = 2 ** 20;

/** A disk of the backend, and what its blocks must hold. */
export class TestDevice {
  readonly announced: Announced;
  /** Bytes. Where the backend leaves it to the configuration, the smallest. */
  readonly blockSize: number;
  readonly blocks: number;
  /** Blocks of the longest request. */
  readonly largest: number;
  readonly #disk: Disk;
  readonly #model: DiskModel;
  #stamp = 0;

  constructor(disk: Disk) {
    this.announced = disk.announced;
    this.blockSize = this.announced.blockSize ?? 512;
    this.blocks = this.announced.size / this.blockSize;
    this.largest = Math.min(LARGEST_REQUEST / this.blockSize, this.blocks);
    this.#disk = disk;
    this.#model = new DiskModel(this.blockSize);
  }

  /** As when queue processes crash. Rejects if what takes over announces something else. */
  async replace(): Promise<void> {
    await this.#disk.replace();
    assertSame(this.announced, this.#disk.announced);
  }

  /** After something failed, as `replace`. */
  async reset(): Promise<void> {
    await this.#disk.reset();
    assertSame(this.announced, this.#disk.announced);
  }

  can(kind: OperationKind | 'idempotentWrites'): boolean {
    const { readOnly, flush, discard, writeZeroes, idempotentWrites } = this.announced;
    if (kind === 'idempotentWrites') return idempotentWrites;
    return kind === 'read' || (!readOnly && { write: true, flush, discard, writeZeroes }[kind]);
  }

  /** Performs what the backend can, then verifies. Rejects with the first thing that is wrong. */
  async perform(operations: readonly Operation[], begins?: (operation: Operation) => void): Promise<void> {
    this.#model.startOver();
    await this.#perform(operations, begins);
    await this.verify();
  }

  /** Reads again all that is known, and checks that the backend changed no buffer that it had given back. */
  async verify(): Promise<void> {
    const ranges = this.#model.knownRanges(this.largest);
    await this.#perform(
      ranges.map(({ block, blocks }, index) => operation('read', block, { blocks, queue: index % QUEUES })),
    );
    await this.#disk.inspect();
  }

  /** As when a device stops: what is under way as that begins is still answered. */
  async close(underWay: readonly Operation[]): Promise<void> {
    await this.#disk.close(this.#perform(underWay));
  }

  /** Performs the operations while queue processes crash. */
  async performAmidCrash(operations: readonly Operation[]): Promise<void> {
    await allDone([this.#perform(operations), this.replace()]);
  }

  describe(operation: Operation): string {
    return describeOperation(operation, this.blockSize, this.#disk.choosesQueue);
  }

  async #perform(operations: readonly Operation[], begins?: (operation: Operation) => void): Promise<void> {
    let underWay: { readonly operation: Operation; readonly done: Promise<void> }[] = [];
    for (const operation of operations.filter(({ kind }) => this.can(kind))) {
      if (!operation.together || underWay.some((other) => conflict(operation, other.operation))) {
        await allDone(underWay.map(({ done }) => done));
        underWay = [];
      }
      begins?.(operation);
      underWay.push({ operation, done: this.#start(operation) });
    }
    await allDone(underWay.map(({ done }) => done));
  }

  async #start({ kind, queue, block, blocks, flag }: Operation): Promise<void> {
    const offset = block * this.blockSize;
    const length = blocks * this.blockSize;
    const call = (request: Request): Promise<Uint8Array> => this.#disk.call(queue, request);
    switch (kind) {
      case 'read': {
        const fault = this.#model.read(block, await call({ method: 'read', offset, length }));
        if (fault !== undefined) {
          const where = this.#disk.choosesQueue ? ` on queue ${queue}` : '';
          throw new Error(`read of ${length} bytes at ${offset}${where}: ${fault}`);
        }
        break;
      }
      case 'write': {
        const data = stampedData(++this.#stamp, offset, length);
        // The kernel sends FUA only to a device that announces a write cache.
        await call({ method: 'write', offset, data, fua: flag && this.announced.flush });
        this.#model.write(block, data);
        break;
      }
      case 'writeZeroes':
        await call({ method: 'writeZeroes', offset, length, mayUnmap: flag });
        this.#model.write(block, new Uint8Array(length));
        break;
      case 'discard':
        await call({ method: 'discard', offset, length });
        this.#model.discard(block, blocks);
        break;
      case 'flush':
        await call({ method: 'flush' });
    }
  }
}

/** Waits for all even if one fails, so that nothing is under way afterwards. */
async function allDone(underWay: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(underWay);
  for (const result of results) {
    if (result.status === 'rejected') throw result.reason;
  }
}
