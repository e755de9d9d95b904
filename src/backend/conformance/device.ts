import type { Announced } from '../load.js';
import { DiskModel, stampedData } from './disk-model.js';
import { TestInstance, type InstanceSettings } from './instance.js';
import type { Call } from './messages.js';
import { conflict, operation, type Operation, type OperationKind } from './operations.js';

/** The longest request, in bytes. */
const LARGEST_REQUEST = 2 ** 20;
/** The fewest with which one reads what another wrote. */
export const QUEUES = 2;

export type DeviceSettings = Omit<InstanceSettings, 'queue' | 'queues' | 'memory'>;

/** A device without a kernel: an instance of the backend for each queue, and what its blocks must hold. */
export class TestDevice {
  readonly announced: Announced;
  /** Bytes. Where the backend leaves it to the configuration, the smallest. */
  readonly blockSize: number;
  readonly blocks: number;
  /** Blocks of the longest request. */
  readonly largest: number;
  readonly #settings: DeviceSettings;
  readonly #memory: Map<string, SharedArrayBuffer>;
  readonly #model: DiskModel;
  #instances: readonly TestInstance[];
  #stamp = 0;

  private constructor(settings: DeviceSettings, memory: Map<string, SharedArrayBuffer>, instances: TestInstance[]) {
    const [first] = instances;
    if (!first) throw new TypeError('no instance');
    this.announced = first.announced;
    this.blockSize = this.announced.blockSize ?? 512;
    this.blocks = this.announced.size / this.blockSize;
    this.largest = Math.min(LARGEST_REQUEST / this.blockSize, this.blocks);
    this.#settings = settings;
    this.#memory = memory;
    this.#model = new DiskModel(this.blockSize);
    this.#instances = instances;
  }

  /** Rejects if an instance cannot be opened or announces something else than the first. */
  static async open(settings: DeviceSettings): Promise<TestDevice> {
    const memory = new Map<string, SharedArrayBuffer>();
    return new TestDevice(settings, memory, await openAll(settings, memory));
  }

  /** As when queue processes crash: new instances take over, without a word to the old ones. */
  async replace(): Promise<void> {
    await this.kill();
    this.#instances = await openAll(this.#settings, this.#memory);
    const { announced } = this.#instance(0);
    if (JSON.stringify(announced) !== JSON.stringify(this.announced)) throw differs(this.announced, announced);
  }

  can(kind: OperationKind): boolean {
    const { readOnly, flush, discard, writeZeroes } = this.announced;
    return kind === 'read' || (!readOnly && { write: true, flush, discard, writeZeroes }[kind]);
  }

  /** Performs what the backend can, then verifies. Rejects with the first thing that is wrong. */
  async perform(operations: readonly Operation[], begins?: (operation: Operation) => void): Promise<void> {
    this.#model.startOver();
    await this.#perform(operations, begins);
    await this.verify();
  }

  /** Reads again all that is known, and checks that nobody changed a buffer that was no longer his. */
  async verify(): Promise<void> {
    const ranges = this.#model.knownRanges(this.largest);
    await this.#perform(
      ranges.map(({ block, blocks }, index) => operation('read', block, { blocks, queue: index % QUEUES })),
    );
    for (const instance of this.#instances) await instance.inspect();
  }

  /** As when a device stops: what is under way as that begins is still answered. */
  async close(underWay: readonly Operation[]): Promise<void> {
    const performed = this.#perform(underWay);
    for (const instance of this.#instances) instance.drain();
    await performed;
    for (const instance of this.#instances) await instance.call({ method: 'close' });
  }

  async kill(): Promise<void> {
    await Promise.all(this.#instances.map((instance) => instance.kill()));
  }

  async #perform(operations: readonly Operation[], begins?: (operation: Operation) => void): Promise<void> {
    let underWay: { readonly operation: Operation; readonly done: Promise<void> }[] = [];
    for (const operation of operations.filter(({ kind }) => this.can(kind))) {
      if (!operation.together || underWay.some((other) => conflict(operation, other.operation))) {
        await allDone(underWay);
        underWay = [];
      }
      begins?.(operation);
      underWay.push({ operation, done: this.#start(operation) });
    }
    await allDone(underWay);
  }

  async #start({ kind, queue, block, blocks, flag }: Operation): Promise<void> {
    const offset = block * this.blockSize;
    const length = blocks * this.blockSize;
    const call = (call: Call): Promise<Uint8Array> => this.#instance(queue).call(call);
    switch (kind) {
      case 'read': {
        const fault = this.#model.read(block, await call({ method: 'read', offset, length }));
        if (fault !== undefined) {
          throw new Error(`read of ${String(length)} bytes at ${String(offset)} on queue ${String(queue)}: ${fault}`);
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

  #instance(queue: number): TestInstance {
    const instance = this.#instances[queue];
    if (!instance) throw new TypeError(`no queue ${String(queue)}`);
    return instance;
  }
}

async function openAll(settings: DeviceSettings, memory: Map<string, SharedArrayBuffer>): Promise<TestInstance[]> {
  const opened: TestInstance[] = [];
  try {
    for (let queue = 0; queue < QUEUES; queue++) {
      const instance = await TestInstance.open({ ...settings, memory, queue, queues: QUEUES });
      opened.push(instance);
      const [first = instance] = opened;
      if (JSON.stringify(first.announced) !== JSON.stringify(instance.announced)) {
        throw differs(first.announced, instance.announced);
      }
    }
    return opened;
  } catch (error) {
    await Promise.all(opened.map((instance) => instance.kill()));
    throw error;
  }
}

function differs(one: Announced, other: Announced): Error {
  return new Error(`instances differ: one is ${JSON.stringify(one)}, another one ${JSON.stringify(other)}`);
}

/** Waits for all even if one fails, so that nothing is under way afterwards. */
async function allDone(underWay: readonly { readonly done: Promise<void> }[]): Promise<void> {
  const results = await Promise.allSettled(underWay.map(({ done }) => done));
  for (const result of results) {
    if (result.status === 'rejected') throw result.reason;
  }
}
