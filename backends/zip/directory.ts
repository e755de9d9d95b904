import type { FileHandle } from 'node:fs/promises';
import { crc32 } from 'node:zlib';

/**
 * The central directory of a zip archive (APPNOTE.TXT 4.3), read as bytes and entry by entry: what is odd about one entry is
 * no reason not to serve another, and an archive may have any number of them.
 */

export interface Directory {
  /** Bytes of the file. */
  readonly start: number;
  readonly end: number;
  /** How far everything is behind where the archive says it is, because something was put in front of it. */
  readonly shift: number;
}

export interface DirectoryEntry {
  readonly rawName: Buffer;
  readonly flags: number;
  readonly method: number;
  readonly crc: number;
  readonly compressedBytes: number;
  readonly bytes: number;
  /** Where its local header is in the file. */
  readonly headerOffset: number;
  readonly isLink: boolean;
  /** Another name that it says it has, in UTF-8. */
  readonly unicodeName: string | null;
}

/** What is behind the end of an archive, padding or a signature, and the comment in it. */
const LONGEST_TAIL = 2 ** 20;
/** No entry in the directory is longer: its name, extra field and comment have 64 KiB each at most. */
const PIECE = 256 * 1024;
const LARGEST_DIRECTORY = 2 ** 30;

const END = Buffer.from('PK\x05\x06', 'latin1');
const END_BYTES = 22;
const END64 = 0x06064b50;
const END64_BYTES = 56;
const LOCATOR = 0x07064b50;
const LOCATOR_BYTES = 20;
const ENTRY = 0x02014b50;
const ENTRY_BYTES = 46;
const IN_16 = 0xffff;
const IN_32 = 0xffffffff;

const ZIP64_FIELD = 1;
const UNICODE_NAME_FIELD = 0x7075;
/** Programs that keep Unix's file modes. */
const UNIX_HOSTS: readonly number[] = [3, 19];

/** `length` bytes of a file of `size` bytes. */
export async function readPiece(file: FileHandle, size: number, position: number, length: number): Promise<Buffer> {
  if (!Number.isSafeInteger(position) || position < 0 || position + length > size) {
    throw new Error('it is truncated or damaged: it refers to places that it does not have');
  }
  const piece = Buffer.alloc(length);
  for (let done = 0; done < length;) {
    const { bytesRead } = await file.read(piece, done, length - done, position + done);
    if (bytesRead === 0) throw new Error('it became shorter while it was read');
    done += bytesRead;
  }
  return piece;
}

export async function findDirectory(file: FileHandle, size: number): Promise<Directory> {
  const length = Math.min(size, LONGEST_TAIL);
  const tailStart = size - length;
  const tail = await readPiece(file, size, tailStart, length);
  let fault: Error | null = null;
  for (
    let at = tail.lastIndexOf(END, length - END_BYTES);
    at >= 0;
    at = at === 0 ? -1 : tail.lastIndexOf(END, at - 1)
  ) {
    if (at + END_BYTES > length) continue;
    try {
      return await directoryBefore(file, size, tailStart + at, tail.subarray(at, at + END_BYTES));
    } catch (error) {
      // The signature may be in a comment, or in what is behind the end.
      fault ??= error as Error;
    }
  }
  throw fault ?? new Error('it is no zip archive, or its end is missing');
}

async function directoryBefore(file: FileHandle, size: number, at: number, end: Buffer): Promise<Directory> {
  const parts = [end.readUInt16LE(4), end.readUInt16LE(6)];
  if (parts.some((part) => part !== 0 && part !== IN_16))
    throw new Error('it is a part of an archive in several files');
  let [bytes, offset, stop] = [end.readUInt32LE(12), end.readUInt32LE(16), at];
  const end64 = await end64Before(file, size, at);
  if (end64 !== null) ({ bytes, offset, stop } = end64);
  if (bytes > LARGEST_DIRECTORY) throw new Error(`its directory of ${bytes} bytes is too large`);
  // Where it ends is certain; what is said of its beginning counts from where the archive once began.
  for (const start of [stop - bytes, offset]) {
    if (bytes === 0 || (await startsEntry(file, size, start)))
      return { start, end: start + bytes, shift: start - offset };
  }
  throw new Error('its directory is not where it says, or damaged');
}

async function startsEntry(file: FileHandle, size: number, start: number): Promise<boolean> {
  if (start < 0 || start + ENTRY_BYTES > size) return false;
  return (await readPiece(file, size, start, 4)).readUInt32LE(0) === ENTRY;
}

/** What is too large for the record at `at` is in another one in front of it. */
async function end64Before(
  file: FileHandle,
  size: number,
  at: number,
): Promise<{ readonly bytes: number; readonly offset: number; readonly stop: number } | null> {
  if (at < LOCATOR_BYTES) return null;
  const locator = await readPiece(file, size, at - LOCATOR_BYTES, LOCATOR_BYTES);
  if (locator.readUInt32LE(0) !== LOCATOR) return null;
  for (const stop of [at - LOCATOR_BYTES - END64_BYTES, Number(locator.readBigUInt64LE(8))]) {
    if (!Number.isSafeInteger(stop) || stop < 0 || stop + END64_BYTES > at) continue;
    const record = await readPiece(file, size, stop, END64_BYTES);
    if (record.readUInt32LE(0) !== END64) continue;
    return { bytes: Number(record.readBigUInt64LE(40)), offset: Number(record.readBigUInt64LE(48)), stop };
  }
  throw new Error('its zip64 end is not where it says, or damaged');
}

/** All entries, in pieces: to where the directory ends, as programs count them modulo 65536. */
export async function* entriesOf(
  file: FileHandle,
  size: number,
  { start, end, shift }: Directory,
): AsyncGenerator<readonly DirectoryEntry[], void> {
  for (let position = start; position < end;) {
    const length = Math.min(PIECE, end - position);
    const piece = await readPiece(file, size, position, length);
    const entries: DirectoryEntry[] = [];
    let at = 0;
    for (;;) {
      const bytes = entryBytes(piece, at);
      if (bytes === null || at + bytes > length) break;
      entries.push(parseEntry(piece.subarray(at, at + bytes), shift));
      at += bytes;
    }
    if (at === 0) throw new Error('its directory is damaged: an entry goes on behind its end');
    position += at;
    yield entries;
  }
}

/** null: of the entry at `at` there is too little. */
function entryBytes(piece: Buffer, at: number): number | null {
  if (at + ENTRY_BYTES > piece.length) return null;
  if (piece.readUInt32LE(at) !== ENTRY)
    throw new Error('its directory is damaged: there is no entry where one should be');
  return ENTRY_BYTES + piece.readUInt16LE(at + 28) + piece.readUInt16LE(at + 30) + piece.readUInt16LE(at + 32);
}

function parseEntry(entry: Buffer, shift: number): DirectoryEntry {
  const nameEnd = ENTRY_BYTES + entry.readUInt16LE(28);
  const rawName = entry.subarray(ENTRY_BYTES, nameEnd);
  const fields = fieldsOf(entry.subarray(nameEnd, nameEnd + entry.readUInt16LE(30)));
  const wide = wideNumbers(fields.get(ZIP64_FIELD));
  const bytes = wide(entry.readUInt32LE(24));
  const compressedBytes = wide(entry.readUInt32LE(20));
  const headerOffset = wide(entry.readUInt32LE(42)) + shift;
  const unixMode = UNIX_HOSTS.includes(entry.readUInt8(5)) ? entry.readUInt16LE(40) : 0;
  return {
    rawName,
    flags: entry.readUInt16LE(8),
    method: entry.readUInt16LE(10),
    crc: entry.readUInt32LE(16),
    compressedBytes,
    bytes,
    headerOffset,
    isLink: (unixMode & 0o170000) === 0o120000,
    unicodeName: unicodeNameOf(fields.get(UNICODE_NAME_FIELD), rawName),
  };
}

/** By their number; what is damaged, and what is behind it, is left out. */
function fieldsOf(extra: Buffer): ReadonlyMap<number, Buffer> {
  const fields = new Map<number, Buffer>();
  for (let at = 0; at + 4 <= extra.length;) {
    const end = at + 4 + extra.readUInt16LE(at + 2);
    if (end > extra.length) break;
    fields.set(extra.readUInt16LE(at), extra.subarray(at + 4, end));
    at = end;
  }
  return fields;
}

/** Gives each number that did not fit into 32 bits, in the order of their fields: the zip64 field has those only. */
function wideNumbers(field: Buffer | undefined): (narrow: number) => number {
  let at = 0;
  return (narrow) => {
    if (narrow !== IN_32 || field === undefined || at + 8 > field.length) return narrow;
    at += 8;
    return Number(field.readBigUInt64LE(at - 8));
  };
}

/** Version 1, then the CRC-32 of the name that it stands for. */
function unicodeNameOf(field: Buffer | undefined, rawName: Buffer): string | null {
  if (field === undefined || field.length < 5 || field.readUInt8(0) !== 1) return null;
  return field.readUInt32LE(1) === crc32(rawName) ? field.subarray(5).toString('utf8') : null;
}
