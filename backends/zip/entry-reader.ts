import type { FileHandle } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { createInflateRaw } from 'node:zlib';
import { readerOf, type ReadAt } from '../disk-image.js';
import type { ArchiveEntry } from './archive.js';

/** A deflated entry can be read from its beginning only; what is behind this is not looked at. */
const MOST_INFLATED = 16 * 2 ** 20;
const PIECE = 64 * 1024;

export interface EntryReader extends AsyncDisposable {
  /** Of a deflated entry it reads nothing behind the first 16 MiB, or behind what cannot be inflated. */
  readonly read: ReadAt;
}

/** Reads what an entry has, before there is an index of it. */
export function entryReader(archive: FileHandle, entry: ArchiveEntry): EntryReader {
  const { dataOffset, compressedBytes, bytes, deflated } = entry;
  if (!deflated) {
    const stored = readerOf(archive, dataOffset);
    return {
      read: (position, length) => stored(position, Math.max(0, Math.min(length, bytes - position))),
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
  }
  const source = Readable.from(compressed(archive, dataOffset, compressedBytes));
  const inflate = source.pipe(createInflateRaw());
  const pieces = inflate[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  let inflated: Buffer = Buffer.alloc(0);
  return {
    read: async (position, length) => {
      const end = position + length;
      if (end > MOST_INFLATED) return Buffer.alloc(0);
      const more = [inflated];
      for (let have = inflated.length; have < end;) {
        const piece = await pieces.next().catch(() => null);
        if (piece === null || piece.done === true) break;
        more.push(piece.value);
        have += piece.value.length;
      }
      inflated = Buffer.concat(more);
      return inflated.subarray(position, end);
    },
    async [Symbol.asyncDispose]() {
      source.destroy();
      await pieces.return?.();
    },
  };
}

/** A stream of the file handle's own would close it. */
async function* compressed(archive: FileHandle, start: number, bytes: number): AsyncGenerator<Buffer> {
  const read = readerOf(archive, start);
  for (let position = 0; position < bytes;) {
    const piece = await read(position, Math.min(PIECE, bytes - position));
    if (piece.length === 0) return;
    yield piece;
    position += piece.length;
  }
}
