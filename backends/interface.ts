import type { z } from 'zod';
import type { User } from '../src/native/addon/accounts.js';

/** What a device built on a backend announces to the kernel; see `struct ublk_params` in linux/ublk_cmd.h. */
export interface BackendFacts {
  /** FLUSH is sent only to devices that announce a volatile cache. */
  readonly volatileCache: boolean;
  /** FUA writes are sent only to devices with a volatile cache that announce FUA. */
  readonly fua: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
  readonly readOnly: boolean;
  readonly rotational: boolean;
  /** Whether a write may reach the backend twice; without it outstanding requests cannot be reissued. */
  readonly idempotentWrites: boolean;
}

/** What a backend announces that can do everything. Its cache is volatile, because the kernel sends FLUSH and FUA to no other. */
export const writableFacts: BackendFacts = {
  volatileCache: true,
  fua: true,
  discard: true,
  writeZeroes: true,
  readOnly: false,
  rotational: false,
  idempotentWrites: true,
};

/** How request data reaches a queue process; architecture in docs/architecture.md. */
export type DataPath = 'copy' | 'user-copy' | 'zero-copy';

/** What was chosen because the configuration does not say it. */
export interface Choice {
  readonly what: 'blockSize' | 'dataPath' | 'direct' | 'readOnly';
  readonly value: string | number | boolean;
  /** In a few words. */
  readonly why: string;
}

/** What a backend that an earlier supervisor had opened left to the next one. */
export interface LeftBackend {
  /**
   * `OpenBackend.files`, which queue processes may be using: with the locks and claims that keep everybody else from
   * opening them. Taken over by the one who opens; empty where they are not there any more.
   */
  readonly files: readonly number[];
  /**
   * Bytes that the kernel's device has, and so its users know; null: it has no block device. A store that is larger was
   * left in the middle of a change of size.
   */
  readonly size: number | null;
  /** Logical block size that the kernel's device has; null: it has no block device. */
  readonly blockSize: number | null;
  /** null: it is not known. */
  readonly announced:
    | (Pick<OpenBackend, 'size' | 'facts' | 'maxQueues'> & {
        readonly blockSize: number | null;
        readonly identity?: string | undefined;
        readonly lower?: readonly LowerBackend[] | undefined;
      })
    | null;
}

export interface OpenContext {
  /** The device's name: `^[a-z0-9][a-z0-9_.-]{0,62}$`, so safe as a file name. */
  readonly device: string;
  /** Logical block size in bytes that the device has to have; null: the one that suits the data. */
  readonly blockSize: number | null;
  /** The device refuses writes, so the backend need not be able to write. */
  readonly readOnly: boolean;
  readonly inherited?: LeftBackend;
  /** The user that the queue processes run as; left out, the supervisor's. */
  readonly user?: User | undefined;
  /** For what a backend has below it. */
  readonly openLower?: OpenLower;
}

/** What is known before anything is opened. */
export type LookContext = Pick<OpenContext, 'device' | 'blockSize' | 'readOnly'>;

/** The `backend` of a configuration, not validated. */
export type BackendInput = Readonly<Record<string, unknown>>;

/** What serves a store below a backend in JavaScript. */
export type LowerStore =
  /** `name` of the backend; `parked`: it has files, parked in a socket. */
  | {
      readonly kind: 'native';
      readonly name: string;
      readonly parked: boolean;
      readonly size: number;
      readonly blockSize: number | null;
      readonly facts: BackendFacts;
      readonly identity?: string | undefined;
    }
  | { readonly kind: 'module'; readonly path: string; readonly options: BackendInput };

/** What a backend in JavaScript has asked `BackendContext.open` for. */
export interface LowerBackend {
  readonly asked: BackendInput;
  readonly store: LowerStore;
}

/** What `asked` for comes to; paths in it are relative to `directory`. Rejects with a `SupervisorError`. */
export type OpenLower = (
  asked: BackendInput,
  directory: string,
  context: Pick<OpenContext, 'device' | 'inherited'>,
) => Promise<
  | { readonly kind: 'native'; readonly name: string; readonly backend: OpenBackend }
  | { readonly kind: 'module'; readonly path: string; readonly options: BackendInput }
>;

/** What a backend in JavaScript says before it is opened. */
export interface Loaded {
  /** null: any number. */
  readonly maxQueues: number | null;
}

/** What the queue processes of a backend in JavaScript load. */
export interface BackendModule {
  /** Absolute. */
  readonly path: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** What paths in its options are relative to. Absolute. */
  readonly directory: string;
  /** What it has below it. */
  readonly lower: readonly LowerBackend[];
}

/** A backend that is open: what its queue processes inherit, and how to let go of it. */
export interface OpenBackend {
  /** Bytes; a multiple of 512. */
  readonly size: number;
  readonly facts: BackendFacts;
  /** Logical block size that the backend insists on: no request is for a part of a block. Left out, any will do. */
  readonly blockSize?: number;
  /** It serves no more hardware queues. Left out, any number. */
  readonly maxQueues?: number | undefined;
  /** What the configuration had left to it. */
  readonly choices?: readonly Choice[];
  /**
   * Tells its data from any other until the next boot. A successor that finds no `files` must not give whoever uses the
   * device another store; with a `size` of null nobody does. Left out: there is nothing to tell.
   */
  readonly identity?: string;
  /** What its user should be told though it can be served. */
  readonly warning?: string;
  /** Left out: the backend is native. */
  readonly module?: BackendModule;
  /**
   * File descriptors for the C++ half, in the order it expects; they stay open until `close`. Of a backend in JavaScript the
   * file that its shared memory is in, and those of the stores below it.
   */
  readonly files: readonly number[];
  /** `open` made the data: a device that then cannot be started takes it along. */
  readonly created: boolean;
  /** What its C++ half can serve, best first as bench/ measured it; `dataPath: auto` is the first that the kernel has. */
  readonly dataPaths: readonly DataPath[];
  /**
   * Resolves with the same backend, open at another size, its data made larger where that takes it; the rest of a larger
   * one stays until `trim`. Rejects with nothing changed. Left out: its size is what it is.
   */
  resize?(size: number): Promise<OpenBackend>;
  /**
   * Resolves with a backend in JavaScript as its code is now, with other options: the same files and data, of which only one of
   * the two is to be closed. Left out: the backend is native.
   */
  renew?(wanted: Pick<BackendModule, 'options' | 'directory'>, user: User | undefined): Promise<OpenBackend>;
  /** Cuts off what its data has behind `size`. Called when nothing larger serves it; left out: there is nothing. */
  trim?(): Promise<void>;
  /** Called before a device is made or recovered. Rejects when its data is no longer there. Left out: it always is. */
  check?(): Promise<void>;
  /** Let go of everything but the data. */
  close(): Promise<void>;
  /** Remove the data too; called once, after `close`, when a device is deleted. */
  remove(): Promise<void>;
}

/** The half of a backend that opens it. The C++ half of a native one has the same name in backends/registry.cpp. */
export interface Backend<Options extends { readonly type: string }> {
  readonly name: string;
  /** The backend's part of the configuration, `type` included. */
  readonly options: z.ZodType<Options>;
  /**
   * What it opens may be in a file system that does not answer. So a process of its own opens it, where nothing may wait but in
   * libuv's threads; `remove` has nothing to remove.
   */
  readonly mayHang?: true;
  /** The most that an open one can have as `dataPaths`. */
  readonly dataPaths: readonly DataPath[];
  /**
   * Rejects with a `SupervisorError` when `open` would, as far as names and stat(2) tell: opens and makes nothing. Resolves with
   * what no other device may have; null: there is no such thing. Left out: there is nothing to look at.
   */
  look?(options: Options, context: LookContext): Promise<string | null>;
  /**
   * Rejects with a `SupervisorError` when its code cannot be loaded or refuses the options, in a process of `user` that opens nothing.
   * Resolves with what it says of itself. Left out: it is part of this program.
   */
  tryLoading?(options: Options, context: Pick<OpenContext, 'device' | 'user'>): Promise<Loaded>;
  /** Fails with a `SupervisorError` and leaves nothing behind. */
  open(options: Options, context: OpenContext): Promise<OpenBackend>;
}
