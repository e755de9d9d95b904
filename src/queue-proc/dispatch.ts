import { constants } from 'node:os';
import type { BackendInstance } from '../js-backend/define.js';
import { Operation } from '../native/request.js';
import type { JsQueue } from '../native/addon/js-queue.js';
import type { RequestIdentity } from '../native/request.js';

const OPERATION_BITS = 0xff;
const SECTOR = 512;
const FUA = 0x100;
const MAY_UNMAP = 0x200;

/** Options are passed by reference and never made for a request. */
const PLAIN_WRITE = { fua: false } as const;
const FUA_WRITE = { fua: true } as const;
const UNMAPPING = { mayUnmap: true } as const;
const KEEPING = { mayUnmap: false } as const;

/** Error results, by what the backend did; documented in ublk-supervisor-backend(7), ERRORS. */
const { EIO } = constants.errno;
/** Answers of other operations mean success whatever they are. */
const NOTHING = -1;

/**
 * Hands batches of requests to a backend and its answers back. A batch of synchronous answers is one call to `answer`;
 * answers that come later are gathered until the present turn of promises is through.
 */
export class Dispatcher {
  readonly #instance: BackendInstance;
  readonly #queue: JsQueue;
  readonly #onError: (error: unknown, request: RequestIdentity) => void;
  readonly #maxIoBytes: number;
  /** By tag, of its last request: what the kernel calls the operation, where it begins and how long it is, in bytes. */
  readonly #operations: Int32Array;
  readonly #offsets: Float64Array;
  readonly #lengths: Float64Array;
  /** By tag, the view that its last request used: lengths repeat, so a steady load makes none. */
  readonly #views: Buffer[];
  #answered = 0;
  #scheduled = false;

  constructor(options: {
    instance: BackendInstance;
    queue: JsQueue;
    depth: number;
    /** A request failed with an error that names no errno, or with a wrong answer. */
    onError: (error: unknown, request: RequestIdentity) => void;
  }) {
    this.#instance = options.instance;
    this.#queue = options.queue;
    this.#onError = options.onError;
    this.#maxIoBytes = options.queue.buffers.byteLength / options.depth;
    this.#operations = new Int32Array(options.depth);
    this.#offsets = new Float64Array(options.depth);
    this.#lengths = new Float64Array(options.depth);
    this.#views = Array.from({ length: options.depth }, () => Buffer.alloc(0));
  }

  /** Serves the `count` requests that the queue put into its arrays. */
  batch(count: number): void {
    const { requests, offsets } = this.#queue;
    for (let i = 0; i < count; i++) {
      const tag = requests[3 * i] ?? 0;
      const flags = requests[3 * i + 1] ?? 0;
      const length = requests[3 * i + 2] ?? 0;
      this.#serve(tag, flags, length, offsets[i] ?? 0);
    }
    this.#send();
  }

  #serve(tag: number, flags: number, length: number, offset: number): void {
    const due = isTransfer(flags) ? length : NOTHING;
    this.#operations[tag] = flags & OPERATION_BITS;
    this.#offsets[tag] = offset;
    this.#lengths[tag] = length;
    try {
      const result = this.#call(tag, flags, length, offset);
      if (isPromise(result)) {
        once(result).then(
          (value) => this.#later(tag, this.#resultOf(tag, value, due)),
          (error: unknown) => this.#later(tag, this.#errorOf(tag, error)),
        );
      } else {
        this.#put(tag, this.#resultOf(tag, result, due));
      }
    } catch (error) {
      this.#put(tag, this.#errorOf(tag, error));
    }
  }

  #call(tag: number, flags: number, length: number, offset: number): unknown {
    const backend = this.#instance;
    switch (flags & OPERATION_BITS) {
      case Operation.read:
        return backend.read(this.#view(tag, length), offset);
      case Operation.write:
        return backend.write?.(this.#view(tag, length), offset, (flags & FUA) !== 0 ? FUA_WRITE : PLAIN_WRITE);
      case Operation.flush:
        return backend.flush?.();
      case Operation.discard:
        return backend.discard?.(offset, length);
      case Operation.writeZeroes:
        return backend.writeZeroes?.(offset, length, (flags & MAY_UNMAP) !== 0 ? UNMAPPING : KEEPING);
      default:
        throw new RangeError(`the kernel sent operation ${flags & OPERATION_BITS}`);
    }
  }

  #view(tag: number, length: number): Buffer {
    const last = this.#views[tag];
    if (last?.length === length) return last;
    const view = Buffer.from(this.#queue.buffers, tag * this.#maxIoBytes, length);
    this.#views[tag] = view;
    return view;
  }

  /** `due`: the bytes that a read or write has to say it transferred. */
  #resultOf(tag: number, value: unknown, due: number): number {
    if (due === NOTHING || value === due) return Math.max(due, 0);
    const error = new RangeError(`a request of ${due} bytes was answered with ${describe(value)}`);
    this.#onError(error, this.#requestOf(tag));
    return -EIO;
  }

  #errorOf(tag: number, error: unknown): number {
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    const errno = errnos.get(code);
    if (errno !== undefined) return -errno;
    this.#onError(error, this.#requestOf(tag));
    return -EIO;
  }

  #requestOf(tag: number): RequestIdentity {
    return {
      operation: this.#operations[tag] ?? 0,
      startSector: (this.#offsets[tag] ?? 0) / SECTOR,
      sectors: (this.#lengths[tag] ?? 0) / SECTOR,
    };
  }

  #put(tag: number, result: number): void {
    const { answers, progress } = this.#queue;
    answers[2 * this.#answered] = tag;
    answers[2 * this.#answered + 1] = result;
    this.#answered++;
    // The batch may take long yet.
    progress[0] = (progress[0] ?? 0) + 1;
  }

  #later(tag: number, result: number): void {
    this.#put(tag, result);
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#send();
    });
  }

  #send(): void {
    if (this.#answered === 0) return;
    const count = this.#answered;
    this.#answered = 0;
    this.#queue.answer(count);
  }
}

const errnos: ReadonlyMap<string, number> = new Map(Object.entries(constants.errno));

function isTransfer(flags: number): boolean {
  const operation = flags & OPERATION_BITS;
  return operation === Operation.read || operation === Operation.write;
}

function describe(value: unknown): string {
  return typeof value === 'object' && value !== null ? 'an object' : String(value);
}

/** Of another library's promise, which may settle twice, when the tag has another request, only the first time counts. */
function once(promise: PromiseLike<unknown>): PromiseLike<unknown> {
  if (promise.then === Promise.prototype.then) return promise;
  return new Promise((resolve) => resolve(promise));
}

function isPromise(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function';
}
