import type { LowerStore } from '../../backends/interface.js';
import { Operation } from '../native/request.js';
import { errnoName } from '../errors.js';
import { openNativeDisk } from '../native/addon/native-disk.js';
import type { BackendInstance } from './define.js';

type NativeStore = Extract<LowerStore, { readonly kind: 'native' }>;

const SECTOR = 512;
/** How long a request without data may be: whole blocks of every size, and less than the 4 GiB that a request can have. */
const LONGEST = 2 ** 30;
const NO_FLAGS = { fua: false, mayUnmap: false };

/** A native backend as one in JavaScript: what is read or written goes through buffers of its own. */
export function nativeInstance(store: NativeStore, files: readonly number[]): BackendInstance {
  const { name, size, blockSize, facts } = store;
  const unit = blockSize ?? SECTOR;
  const settle: ((result: number) => void)[] = [];
  const disk = openNativeDisk(name, size, files, (tag, result) => settle[tag]?.(result));
  const free = Array.from({ length: disk.depth }, (_, tag) => tag);
  const waiting: ((tag: number) => void)[] = [];

  const withTag = async (act: (tag: number) => Promise<void>): Promise<void> => {
    const tag = free.pop() ?? (await new Promise<number>((resolve) => waiting.push(resolve)));
    try {
      await act(tag);
    } finally {
      const next = waiting.shift();
      if (next === undefined) free.push(tag);
      else next(tag);
    }
  };
  const submit = async (
    tag: number,
    operation: number,
    offset: number,
    length: number,
    flags = NO_FLAGS,
  ): Promise<void> => {
    const result =
      disk.submit(tag, operation, offset, length, flags.fua, flags.mayUnmap) ??
      (await new Promise<number>((resolve) => {
        settle[tag] = resolve;
      }));
    const isTransfer = operation === Operation.read || operation === Operation.write;
    if (result < 0) throw failure(name, errnoName(result));
    if (isTransfer && result !== length) throw failure(name, 'EIO');
  };
  /** `act` gets where in the range a piece begins, and its length. */
  const inPieces = async (
    offset: number,
    length: number,
    most: number,
    act: (tag: number, start: number, part: number) => Promise<void>,
  ): Promise<number> => {
    const isWithin = offset >= 0 && length >= 0 && offset + length <= size;
    if (!isWithin || offset % unit !== 0 || length % unit !== 0) {
      const range = `blocks of ${unit} within ${size} bytes`;
      throw new RangeError(`${name}: expected ${range}, got ${length} bytes at ${offset}`);
    }
    const starts = Array.from({ length: Math.ceil(length / most) }, (_, index) => index * most);
    const pieces = starts.map((start) => withTag((tag) => act(tag, start, Math.min(most, length - start))));
    // The caller has its buffer again when this settles, so no piece of it may be under way then.
    await Promise.allSettled(pieces);
    await Promise.all(pieces);
    return length;
  };
  const bufferOf = (tag: number, length: number): Buffer => Buffer.from(disk.buffers, tag * disk.maxIoBytes, length);
  const clear = (operation: number, offset: number, length: number, flags = NO_FLAGS): Promise<number> =>
    inPieces(offset, length, LONGEST, (tag, start, part) => submit(tag, operation, offset + start, part, flags));

  const read: BackendInstance['read'] = (buffer, offset) =>
    inPieces(offset, buffer.length, disk.maxIoBytes, async (tag, start, part) => {
      await submit(tag, Operation.read, offset + start, part);
      bufferOf(tag, part).copy(buffer, start);
    });
  const write: BackendInstance['write'] = (buffer, offset, { fua }) =>
    inPieces(offset, buffer.length, disk.maxIoBytes, async (tag, start, part) => {
      buffer.copy(bufferOf(tag, part), 0, start, start + part);
      await submit(tag, Operation.write, offset + start, part, { fua, mayUnmap: false });
    });
  const discard: BackendInstance['discard'] = (offset, length) => clear(Operation.discard, offset, length);
  const writeZeroes: BackendInstance['writeZeroes'] = (offset, length, { mayUnmap }) =>
    clear(Operation.writeZeroes, offset, length, { fua: false, mayUnmap });
  const flush: BackendInstance['flush'] = () => withTag((tag) => submit(tag, Operation.flush, 0, 0));
  return {
    size,
    ...(blockSize === null ? {} : { blockSize }),
    readOnly: facts.readOnly,
    rotational: facts.rotational,
    idempotentWrites: facts.idempotentWrites,
    read,
    ...(facts.readOnly ? {} : { write }),
    ...(facts.volatileCache ? { flush } : {}),
    ...(facts.discard ? { discard } : {}),
    ...(facts.writeZeroes ? { writeZeroes } : {}),
    close: () => disk.close(),
  };
}

function failure(name: string, code: string): Error {
  return Object.assign(new Error(`${name} failed a request (${code})`), { code });
}
