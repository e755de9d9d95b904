import { MessageChannel, Worker } from 'node:worker_threads';
import type { BackendInput } from '../../../backends/interface.js';
import { messageOf } from '../../errors.js';
import { packageRoot } from '../../package-root.js';
import type { Announced } from '../load.js';
import { withFrames } from './frames.js';
import {
  describeCall,
  type Call,
  type FromWorker,
  type MemoryRequest,
  type ToWorker,
  type WorkerOptions,
} from './messages.js';
import type { SharedLower } from './shared-lower.js';

export interface InstanceSettings extends Pick<WorkerOptions, 'module' | 'options' | 'queue' | 'queues'> {
  /** The device's shared memory by name. */
  readonly memory: Map<string, SharedArrayBuffer>;
  /** What it has below it. */
  readonly lower: SharedLower;
  /** How long `open` and every call may take. */
  readonly deadlineMs: number;
}

interface Pending {
  readonly what: string;
  readonly timer: NodeJS.Timeout;
  readonly resolve: (message: FromWorker) => void;
  readonly reject: (error: Error) => void;
}

/** The id of the one answer without a call: how opening went. */
const OPENING = 0;

/** A backend's instance in a worker thread of its own, which stands for a queue process. */
export class TestInstance {
  #announced: Announced | undefined;
  readonly #settings: InstanceSettings;
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  #lastId = OPENING;
  /** Why no call can be answered any more. */
  #ended: string | undefined;

  private constructor(settings: InstanceSettings) {
    this.#settings = settings;
    const { module, options, queue, queues, memory } = settings;
    const { port1, port2 } = new MessageChannel();
    const answered = new Int32Array(new SharedArrayBuffer(4));
    port1.on('message', ({ name, size }: MemoryRequest) => {
      const shared = memory.get(name) ?? new SharedArrayBuffer(size);
      memory.set(name, shared);
      port1.postMessage(shared);
      Atomics.store(answered, 0, 1);
      Atomics.notify(answered, 0);
    });
    const workerData: WorkerOptions = { module, options, queue, queues, memory: port2, answered };
    // A queue process has next to no environment.
    this.#worker = new Worker(`${packageRoot}dist/src/js-backend/conformance/worker.js`, {
      workerData,
      transferList: [port2],
      env: {},
      execArgv: [],
    });
    const given = new Set<number>();
    this.#worker.on('message', (message: FromWorker) => {
      if (message.type === 'wants') void this.#give(message.id, message.asked, given);
      else this.#settle(message.type === 'settled' ? message.id : OPENING, message);
    });
    this.#worker.on('error', (error) => this.#end(withFrames(`its process died of: ${messageOf(error)}`, error)));
    this.#worker.on('exit', (code) => {
      port1.close();
      this.#end(`its process exited with code ${code}`);
    });
  }

  /** Rejects with what the backend's author has to know. */
  static async open(settings: InstanceSettings): Promise<TestInstance> {
    const instance = new TestInstance(settings);
    try {
      const message = await instance.#answer(OPENING, 'open');
      if (message.type !== 'opened') throw new Error(message.type === 'refused' ? message.reason : message.type);
      instance.#announced = message.announced;
      return instance;
    } catch (error) {
      await instance.kill();
      throw error;
    }
  }

  get announced(): Announced {
    if (!this.#announced) throw new TypeError('not open');
    return this.#announced;
  }

  /** Resolves with what a read left in its buffer. Rejects with what is wrong with how the call was answered. */
  call(call: Call): Promise<Uint8Array> {
    return this.#ask(`${describeCall(call)} on queue ${this.#settings.queue}`, (id) => ({
      type: 'call',
      id,
      call,
    }));
  }

  /** Rejects if a buffer changed after its call had settled. */
  async inspect(): Promise<void> {
    await this.#ask(`queue ${this.#settings.queue}`, (id) => ({ type: 'inspect', id }));
  }

  /** Aborts the context's signal. */
  drain(): void {
    this.#send({ type: 'drain' });
  }

  /** Ends the process without asking it, as a crash does. */
  async kill(): Promise<void> {
    await this.#worker.terminate();
  }

  async #ask(what: string, request: (id: number) => ToWorker): Promise<Uint8Array> {
    const id = ++this.#lastId;
    const answer = this.#answer(id, what);
    this.#send(request(id));
    const message = await answer;
    if (message.type !== 'settled') throw new TypeError(message.type);
    if (message.fault !== undefined) throw new Error(`${what} ${message.fault}`);
    return message.data ?? new Uint8Array();
  }

  async #give(id: number, asked: BackendInput, given: Set<number>): Promise<void> {
    try {
      this.#send({ type: 'lower', id, ...(await this.#settings.lower.give(asked, given)) });
    } catch (error) {
      this.#send({ type: 'no-lower', id, reason: messageOf(error) });
    }
  }

  #answer(id: number, what: string): Promise<FromWorker> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new Error(`${what} did not settle within ${this.#settings.deadlineMs} ms`));
      }, this.#settings.deadlineMs);
      this.#pending.set(id, { what, timer, resolve, reject });
      if (this.#ended !== undefined) this.#end(this.#ended);
    });
  }

  #send(message: ToWorker): void {
    this.#worker.postMessage(message);
  }

  #settle(id: number, message: FromWorker): void {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    clearTimeout(pending?.timer);
    pending?.resolve(message);
  }

  #end(reason: string): void {
    this.#ended ??= reason;
    for (const { what, timer, reject } of this.#pending.values()) {
      clearTimeout(timer);
      reject(new Error(`${what} was not answered: ${this.#ended}`));
    }
    this.#pending.clear();
  }
}
