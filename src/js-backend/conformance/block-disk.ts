import { execFile } from 'node:child_process';
import { constants } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { memoryFileOf } from '../../../backends/module/memory-file.js';
import type { DeviceInput } from '../../config/schema.js';
import { SupervisorError, reasonOf } from '../../errors.js';
import type { DeviceStatus, SupervisorApi } from '../../api/status.js';
import type { Announced } from '../load.js';
import { DirectFile } from './direct-file.js';
import type { Disk } from './disk.js';
import { describeCall, type Request } from './messages.js';
import { QUEUES } from './operations.js';

export interface BlockDiskSettings {
  /** Absolute path of the backend's module. */
  readonly module: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** How long every request and every recovery may take. */
  readonly deadlineMs: number;
  readonly supervisor: SupervisorApi;
  /** Ends what is under way, and everything after it, with its reason. */
  readonly interrupt: AbortSignal;
}

interface OpenDevice {
  readonly path: string;
  readonly announced: Announced;
  readonly file: DirectFile;
  /** Its writes have FUA. Of a device that cannot be written to: the same as `file`. */
  readonly synced: DirectFile;
}

const NAME = `test-backend-${process.pid}`;
const POLL_MS = 20;
const SECTOR = 512;
/** Against a loop without end; the checks need far fewer. */
const MOST_RESTARTS = 1000;

/** A backend's real block device, without the page cache. */
export class BlockDisk implements Disk {
  readonly choosesQueue = false;
  readonly #settings: BlockDiskSettings;
  #announced: Announced;
  /** undefined: closed. */
  #device: OpenDevice | undefined;
  /** A request was not answered in time, and still occupies one of the threads that do I/O. */
  #stuck = false;

  private constructor(settings: BlockDiskSettings, device: OpenDevice) {
    this.#settings = settings;
    this.#announced = device.announced;
    this.#device = device;
  }

  /** Rejects if the backend cannot be served. */
  static async open(settings: BlockDiskSettings): Promise<BlockDisk> {
    return new BlockDisk(settings, await openDevice(settings));
  }

  get announced(): Announced {
    return this.#announced;
  }

  async call(_queue: number, request: Request): Promise<Uint8Array> {
    if (!this.#device) throw new TypeError('not open');
    const { deadlineMs, interrupt } = this.#settings;
    interrupt.throwIfAborted();
    const late = AbortSignal.timeout(deadlineMs);
    const what = describeCall(request);
    try {
      return await unless(AbortSignal.any([late, interrupt]), perform(this.#device, request));
    } catch (error) {
      interrupt.throwIfAborted();
      if (error !== late.reason) throw new Error(`${what} failed: ${reasonOf(error)}`, { cause: error });
      this.#stuck = true;
      throw new Error(`${what} did not settle within ${deadlineMs} ms`, { cause: error });
    }
  }

  /** The kernel lets no backend reach a client's buffer. */
  inspect(): Promise<void> {
    return Promise.resolve();
  }

  async close(underWay: Promise<void>): Promise<void> {
    await underWay;
    await this.#close();
  }

  /** Every queue process gets SIGKILL, and the device recovers. */
  async replace(): Promise<void> {
    this.#settings.interrupt.throwIfAborted();
    const status = this.#status();
    if (!status) {
      this.#device = await openDevice(this.#settings);
      this.#announced = this.#device.announced;
      return;
    }
    for (const { pid } of status.queues) if (pid !== null) process.kill(pid, 'SIGKILL');
    await this.#untilGeneration(status.generation + 1);
  }

  /** Makes the device anew only if it has to: that takes long. */
  async reset(): Promise<void> {
    if (this.#device && !this.#stuck && this.#status()?.state === 'live') return;
    await this.#close();
    await this.replace();
  }

  async end(): Promise<void> {
    await this.#close();
    await rm(memoryFileOf(NAME), { force: true });
  }

  /** Keeps the data. What is under way fails, so that no thread waits for it any more. */
  async #close(): Promise<void> {
    if (!this.#device) return;
    const { file, synced } = this.#device;
    await this.#settings.supervisor.remove(NAME, { force: true, removeData: false });
    this.#device = undefined;
    this.#stuck = false;
    await file[Symbol.asyncDispose]();
    await synced[Symbol.asyncDispose]();
  }

  async #untilGeneration(generation: number): Promise<void> {
    const { deadlineMs, interrupt } = this.#settings;
    const deadline = performance.now() + deadlineMs;
    for (;;) {
      interrupt.throwIfAborted();
      const status = this.#status();
      if (status?.state === 'live' && status.generation >= generation) return;
      if (performance.now() > deadline) {
        const now = `it is ${status?.state ?? 'gone'}: ${status?.reason ?? 'no reason is known'}`;
        throw new Error(`the device did not recover within ${deadlineMs} ms; ${now}`);
      }
      await setTimeout(POLL_MS);
    }
  }

  /** null: there is no device. */
  #status(): DeviceStatus | null {
    return this.#settings.supervisor.deviceStatus(NAME);
  }
}

async function openDevice({ module, options, supervisor }: BlockDiskSettings): Promise<OpenDevice> {
  const { path, idempotentWrites } = await addDevice(supervisor, { ...options, type: module });
  try {
    const announced = await announcedBy(path, idempotentWrites);
    const open = (flags: number): Promise<DirectFile> =>
      announced.readOnly ? DirectFile.openReadOnly(path) : DirectFile.open(path, flags);
    return { path, announced, file: await open(0), synced: await open(constants.O_DSYNC) };
  } catch (error) {
    await supervisor.remove(NAME, { force: true, removeData: true });
    throw error;
  }
}

/**
 * What a backend announces is known only when it was opened; one that cannot take a write twice, or serves a single queue,
 * is refused.
 */
async function addDevice(
  supervisor: SupervisorApi,
  backend: DeviceInput['backend'],
): Promise<{ readonly path: string; readonly idempotentWrites: boolean }> {
  const add = async (queues: number, mode: 'reissue' | 'fail-inflight'): Promise<string> => {
    const recovery = { mode, maxRestarts: MOST_RESTARTS };
    const directory = process.cwd();
    const device: DeviceInput = { name: NAME, queues, blockSize: 512, directory, backend, recovery };
    const { path } = await supervisor.add(device);
    if (path === null) throw new Error('the device is gone');
    return path;
  };
  const most = Math.min(QUEUES, availableParallelism());
  const ways = [most, 1].flatMap((queues) => [
    { queues, idempotentWrites: true },
    { queues, idempotentWrites: false },
  ]);
  let refused: unknown;
  for (const { queues, idempotentWrites } of ways) {
    try {
      return { path: await add(queues, idempotentWrites ? 'reissue' : 'fail-inflight'), idempotentWrites };
    } catch (error) {
      if (!(error instanceof SupervisorError && error.code === 'CONFIG')) throw error;
      refused ??= error;
    }
  }
  throw refused;
}

/** What the kernel made of it. */
async function announcedBy(path: string, idempotentWrites: boolean): Promise<Announced> {
  const read = async (attribute: string): Promise<string> =>
    (await readFile(join('/sys/block', basename(path), attribute), 'utf8')).trim();
  return {
    size: Number(await read('size')) * SECTOR,
    blockSize: Number(await read('queue/logical_block_size')),
    maxQueues: null,
    readOnly: (await read('ro')) === '1',
    rotational: (await read('queue/rotational')) === '1',
    idempotentWrites,
    flush: (await read('queue/write_cache')) === 'write back',
    discard: (await read('queue/discard_max_bytes')) !== '0',
    writeZeroes: (await read('queue/write_zeroes_max_bytes')) !== '0',
  };
}

async function perform({ path, file, synced }: OpenDevice, request: Request): Promise<Uint8Array> {
  switch (request.method) {
    case 'read': {
      const data = await file.read(request.offset, request.length);
      assertWhole(data.length, request.length);
      return data;
    }
    case 'write': {
      const { offset, data, fua } = request;
      assertWhole(await (fua ? synced : file).write(offset, data), data.length);
      break;
    }
    case 'discard':
      await blkdiscard(path, request, []);
      break;
    case 'writeZeroes':
      // The kernel lets the backend unmap only what is punched out.
      if (request.mayUnmap) await utility('fallocate', ['--punch-hole', ...range(request), path]);
      else await blkdiscard(path, request, ['--zeroout']);
      break;
    case 'flush':
      await file.flush();
  }
  return new Uint8Array();
}

function assertWhole(transferred: number, length: number): void {
  if (transferred !== length) throw new Error(`${transferred} bytes; expected ${length}`);
}

interface Range {
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
}

function range({ offset, length }: Range): string[] {
  return ['--offset', String(offset), '--length', String(length)];
}

/** With --force it does not look for file systems first. */
function blkdiscard(path: string, where: Range, options: readonly string[]): Promise<void> {
  return utility('blkdiscard', ['--force', ...options, ...range(where), path]);
}

/** Node has no ioctl(2) and no fallocate(2); util-linux is wherever ublk is. */
async function utility(file: string, args: readonly string[]): Promise<void> {
  try {
    await promisify(execFile)(file, args);
  } catch (error) {
    const { stderr = '', code } = error as { readonly stderr?: string; readonly code?: unknown };
    throw code === 'ENOENT' ? new Error(`there is no ${file}; install util-linux`) : new Error(stderr.trim());
  }
}

/** Rejects with the signal's reason as soon as it is aborted. */
function unless<Value>(signal: AbortSignal, promise: Promise<Value>): Promise<Value> {
  return new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason as Error));
    promise.then(resolve, reject);
  });
}
