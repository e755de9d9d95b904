import type { ErrorCode } from '../error-codes.js';
import { Packr } from 'msgpackr';
import type { BackendOptions } from '../../backends/registry.js';
import type { LeftBackend, OpenBackend, OpenContext } from '../../backends/interface.js';

/** What supervisor and the process of stores say to each other: msgpack, one message each, over a socket between the two. */

/** What is done with a store. */
export type StoreCall = 'open' | 'check' | 'resize' | 'trim' | 'close';

/** A sign of life is wanted, or parked files that come along are to be closed. */
export interface PlainRequest {
  readonly sequence: 0;
}

/** A store as described to a process that did not open it. Its parked files, if there are any, come along. */
export interface StoreRequest {
  /** 1 or more. */
  readonly sequence: number;
  readonly call: StoreCall;
  /** Chosen by the supervisor. */
  readonly store: number;
  readonly options: BackendOptions;
  readonly context: Omit<OpenContext, 'inherited' | 'openLower'>;
  readonly inherited: Omit<LeftBackend, 'files'> | null;
  /** `resize`: bytes. */
  readonly wanted: number | null;
}

/** All of an open backend that is not a function; its files come along, parked. */
export interface DescribedStore extends Pick<
  OpenBackend,
  'size' | 'facts' | 'blockSize' | 'choices' | 'identity' | 'warning' | 'created' | 'dataPaths'
> {
  /** What it can be asked for. */
  readonly calls: readonly StoreCall[];
}

export interface StoreAnswer {
  readonly sequence: number;
  /** `open` and `resize`. */
  readonly described: DescribedStore | null;
  readonly error: {
    readonly message: string;
    readonly code: ErrorCode;
    readonly errno: number | null;
    readonly device: string | null;
  } | null;
}

const packr = new Packr({ useRecords: false });

export function packed(message: PlainRequest | StoreRequest | StoreAnswer): Uint8Array {
  return packr.pack(message);
}

/** Between two processes of one program, so what one says is what the other expects. */
export function unpacked(bytes: Uint8Array): unknown {
  return packr.unpack(bytes);
}
