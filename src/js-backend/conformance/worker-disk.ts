import type { Announced } from '../load.js';
import { assertSame, type Disk } from './disk.js';
import { TestInstance, type InstanceSettings } from './test-instance.js';
import type { Request } from './messages.js';
import { QUEUES } from './operations.js';
import { SharedLower } from './shared-lower.js';

export type WorkerDiskSettings = Omit<InstanceSettings, 'queue' | 'queues' | 'memory' | 'lower'>;

/** What its instances have together. */
type Shared = Pick<InstanceSettings, 'memory' | 'lower'>;

/** A disk without a kernel: an instance of the backend for each queue, or as many as it serves. */
export class WorkerDisk implements Disk {
  readonly choosesQueue = true;
  readonly #settings: WorkerDiskSettings;
  readonly #shared: Shared;
  #instances: readonly TestInstance[];

  private constructor(settings: WorkerDiskSettings, shared: Shared, instances: readonly TestInstance[]) {
    this.#settings = settings;
    this.#shared = shared;
    this.#instances = instances;
  }

  /** Rejects if an instance cannot be opened or announces something else than the first. */
  static async open(settings: WorkerDiskSettings): Promise<WorkerDisk> {
    const shared = { memory: new Map<string, SharedArrayBuffer>(), lower: new SharedLower() };
    try {
      return new WorkerDisk(settings, shared, await openAll(settings, shared));
    } catch (error) {
      await shared.lower.end();
      throw error;
    }
  }

  get announced(): Announced {
    return this.#instance(0).announced;
  }

  call(queue: number, request: Request): Promise<Uint8Array> {
    return this.#instance(queue % this.#instances.length).call(request);
  }

  async inspect(): Promise<void> {
    for (const instance of this.#instances) await instance.inspect();
  }

  async close(underWay: Promise<void>): Promise<void> {
    for (const instance of this.#instances) instance.drain();
    await underWay;
    for (const instance of this.#instances) await instance.call({ method: 'close' });
  }

  /** Without a word to the old instances. */
  async replace(): Promise<void> {
    await this.#killAll();
    this.#instances = await openAll(this.#settings, this.#shared);
  }

  reset(): Promise<void> {
    return this.replace();
  }

  async end(): Promise<void> {
    await this.#killAll();
    await this.#shared.lower.end();
  }

  async #killAll(): Promise<void> {
    await Promise.all(this.#instances.map((instance) => instance.kill()));
  }

  #instance(queue: number): TestInstance {
    const instance = this.#instances[queue];
    if (!instance) throw new TypeError(`no queue ${queue}`);
    return instance;
  }
}

async function openAll(settings: WorkerDiskSettings, shared: Shared): Promise<TestInstance[]> {
  const opened: TestInstance[] = [];
  try {
    for (let queue = 0; queue < QUEUES; queue++) {
      const instance = await TestInstance.open({ ...settings, ...shared, queue, queues: QUEUES });
      opened.push(instance);
      const [first = instance] = opened;
      assertSame(first.announced, instance.announced);
      if (opened.length === first.announced.maxQueues) break;
    }
    return opened;
  } catch (error) {
    await Promise.all(opened.map((instance) => instance.kill()));
    throw error;
  }
}
