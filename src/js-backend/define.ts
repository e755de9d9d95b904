import type { z } from 'zod';

/** What a backend tells the supervisor's log: one line each; device and queue are added. */
export interface BackendLog {
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

/** What `open` is told about the process that it runs in. */
export interface BackendContext {
  /** The device's name. */
  readonly device: string;
  /** 0 to `queues` - 1: every queue's process has an instance of its own. */
  readonly queue: number;
  readonly queues: number;
  readonly log: BackendLog;
  /** Aborted when the queue drains: finish what is under way, `close` comes next. */
  readonly signal: AbortSignal;
  /**
   * The absolute form of a path in the options: relative to the configuration file, or to where the command ran that added
   * or tests the backend. The process itself runs in /.
   */
  resolve(path: string): string;
  /**
   * Opens a backend below this one, from what a configuration has as `backend`: `{ type: 'file', path: './disk.img' }`. Only
   * within `open`, and the same in every instance. It is closed with the device.
   */
  open(backend: Readonly<Record<string, unknown>>): Promise<BackendInstance>;
  /**
   * Memory that all instances of the device share and that outlives them: zeros when it is first asked for, gone with
   * the device. `name`: 1 to 63 of a-z, 0-9, "_", "." and "-". `size`: bytes, the same in every instance.
   */
  sharedMemory(name: string, size: number): Buffer;
}

type Eventually<Value> = Value | PromiseLike<Value>;

/**
 * One instance in one queue process. Offsets and lengths are bytes and multiples of the block size, within the device.
 * A buffer is valid until its call settles. Calls overlap; two of them write the same block if a client does so past the page
 * cache, and then either may be what is stored.
 *
 * `read` and `write` answer with the number of bytes transferred, which has to be the buffer's length. To fail a request
 * throw or reject: an error whose `code` is an errno's name (`ENOSPC`) reaches the client as that errno, everything else
 * as EIO. ublk-supervisor-backend(7) has the whole table.
 */
export interface BackendInstance {
  /** Bytes, a multiple of the block size; the same in every instance. */
  readonly size: number;
  /** Logical block size: 512, 1024, 2048 or 4096. Left out: what the configuration says. */
  readonly blockSize?: number;
  readonly readOnly?: boolean;
  readonly rotational?: boolean;
  /** false: a write must not reach the backend twice, so a crash fails those under way. Left out: true. */
  readonly idempotentWrites?: boolean;

  read(buffer: Buffer, offset: number): Eventually<number>;
  /** Left out: the device is read-only. `fua`: on stable storage before the call settles. */
  write?(buffer: Buffer, offset: number, options: { readonly fua: boolean }): Eventually<number>;
  /** Everything written before is on stable storage when it settles. Left out: the device announces no write cache. */
  flush?(): Eventually<unknown>;
  /** The range's content no longer matters. Left out: the device announces no discard. */
  discard?(offset: number, length: number): Eventually<unknown>;
  /** Left out: the kernel writes zeros. `mayUnmap`: the space need not stay allocated. */
  writeZeroes?(offset: number, length: number, options: { readonly mayUnmap: boolean }): Eventually<unknown>;
  /** Called once, when nothing is under way any more. */
  close?(): Eventually<unknown>;
}

export interface BackendDefinition<Options = unknown> {
  readonly name: string;
  /** It serves no more hardware queues than so many, at least 1. Left out: any number. */
  readonly maxQueues?: number;
  /** Checks the backend's part of the configuration, without `type`. Left out: there are no options. */
  readonly options?: z.ZodType<Options>;
  open(options: Options, context: BackendContext): Eventually<BackendInstance>;
}

/** Gives a backend its type; a module's default export is one. */
export function defineBackend<Options = Record<string, never>>(
  definition: BackendDefinition<Options>,
): BackendDefinition<Options> {
  return definition;
}
