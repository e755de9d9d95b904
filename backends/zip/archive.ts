import type { FileHandle } from 'node:fs/promises';
import {
  fromRandomAccessReaderPromise,
  RandomAccessReader,
  type Entry,
  type LocalFileHeader,
  type ZipFile,
} from 'yauzl';
import { show } from '../../src/config/problems.js';
import type { ZipEntryData } from '../../src/native/binding.js';

export interface ArchiveEntry extends ZipEntryData {
  readonly name: string;
}

const MOST_ENTRIES = 65_536;
/** Reading an entry through takes a time in proportion to its size. */
const MOST_BYTES = 64 * 2 ** 30;
/** A deflate stream cannot expand by more than this. */
const MOST_EXPANSION = 1032;

const LOCAL_HEADER_BYTES = 30;
const STORED = 0;
const DEFLATED = 8;
const ENCRYPTED = 0x1;
const SIZES_FOLLOW_DATA = 0x8;
const IN_EXTRA_FIELD = 0xffffffff;

/** Reads within the archive only, whatever place it names, and ahead: the parser asks for a few bytes at a time. */
class ArchiveReader extends RandomAccessReader {
  readonly #archive: FileHandle;
  readonly #size: number;
  /** No header with all that belongs to it is longer. */
  readonly #ahead = Buffer.alloc(256 * 1024);
  #aheadStart = 0;
  #aheadEnd = 0;

  constructor(archive: FileHandle, size: number) {
    super();
    this.#archive = archive;
    this.#size = size;
  }

  override read(
    buffer: Buffer,
    offset: number,
    length: number,
    position: number,
    callback: (error: Error | null) => void,
  ): void {
    this.#read(buffer, offset, length, position)
      .then(() => {
        callback(null);
      })
      // Also what the parser itself throws, so that no archive can end the supervisor.
      .catch((error: unknown) => {
        callback(error as Error);
      });
  }

  async #read(buffer: Buffer, offset: number, length: number, position: number): Promise<void> {
    const end = position + length;
    if (end > this.#size) throw new Error('it is truncated or damaged: it refers to places behind its end');
    if (position < this.#aheadStart || end > this.#aheadEnd) {
      const { bytesRead } = await this.#archive.read(this.#ahead, 0, this.#ahead.length, position);
      if (bytesRead < length) throw new Error('it became shorter while it was read');
      this.#aheadStart = position;
      this.#aheadEnd = position + bytesRead;
    }
    this.#ahead.copy(buffer, offset, position - this.#aheadStart, end - this.#aheadStart);
  }
}

/**
 * Finds an entry, by default the only or the largest one, in an archive of `size` bytes, and checks what the archive
 * says of it. Reads no data. Rejects with an Error that says what is wrong.
 */
export async function findEntry(archive: FileHandle, size: number, wanted: string | undefined): Promise<ArchiveEntry> {
  const zip = await fromRandomAccessReaderPromise(new ArchiveReader(archive, size), size, { autoClose: false });
  if (zip.entryCount > MOST_ENTRIES) {
    throw new Error(`it has ${String(zip.entryCount)} entries; at most ${String(MOST_ENTRIES)} are allowed`);
  }
  const places: Place[] = [];
  let found: Entry | undefined;
  for await (const entry of zip.eachEntry()) {
    places.push(placeOf(entry));
    if (entry.fileName.endsWith('/')) continue;
    if (wanted === undefined) {
      if (!found || entry.uncompressedSize > found.uncompressedSize) found = entry;
    } else if (entry.fileName === wanted) {
      if (found) throw new Error(`it has two entries ${show(wanted)}`);
      found = entry;
    }
  }
  if (!found) throw new Error(wanted === undefined ? 'it has no file in it' : `it has no entry ${show(wanted)}`);
  const entry = await checkedEntry(zip, found);
  const start = found.relativeOffsetOfLocalHeader;
  const end = entry.dataOffset + entry.compressedBytes;
  refuseOverlap(places.map((place) => (place.start === start ? { ...place, end } : place)));
  return entry;
}

/** What an entry takes of the archive, from its local header to its data's last byte. */
interface Place {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

/** The least that it can take: the local header may be longer than the central directory lets know. */
function placeOf({ fileName, fileNameLength, relativeOffsetOfLocalHeader, compressedSize }: Entry): Place {
  const end = relativeOffsetOfLocalHeader + LOCAL_HEADER_BYTES + fileNameLength + compressedSize;
  return { name: fileName, start: relativeOffsetOfLocalHeader, end };
}

/** Data that is shared by entries makes an archive unpack to many times what it could. */
function refuseOverlap(places: Place[]): void {
  places.sort((a, b) => a.start - b.start);
  let last: Place | undefined;
  for (const place of places) {
    if (last && place.start < last.end)
      throw new Error(`its entries ${show(last.name)} and ${show(place.name)} overlap`);
    last = place;
  }
}

/** `entry` with its local header, which has to say the same as the central directory. */
async function checkedEntry(zip: ZipFile, entry: Entry): Promise<ArchiveEntry> {
  const { fileName: name, compressionMethod: method, compressedSize: compressedBytes, uncompressedSize: bytes } = entry;
  const refuse = (reason: string): Error => new Error(`its entry ${show(name)} ${reason}`);
  if (entry.isEncrypted()) throw refuse('is encrypted');
  if (method !== STORED && method !== DEFLATED) {
    throw refuse(`is compressed with method ${String(method)}; only 0 (stored) and 8 (deflated) can be served`);
  }
  if (bytes === 0) throw refuse('is empty');
  if (Math.max(bytes, compressedBytes) > MOST_BYTES) {
    throw refuse(`is larger than ${String(MOST_BYTES / 2 ** 30)} GiB; unpack it and serve the file`);
  }
  if (method === DEFLATED && bytes > compressedBytes * MOST_EXPANSION) {
    throw refuse(`cannot have ${String(bytes)} bytes, deflated to ${String(compressedBytes)}`);
  }
  const local = await zip.readLocalFileHeaderPromise(entry);
  const contradictions = contradicting(local, entry);
  if (contradictions.length > 0) {
    throw refuse(`has another ${contradictions.join(', ')} in its local header than in the central directory`);
  }
  const { fileDataStart: dataOffset } = local;
  return { name, dataOffset, compressedBytes, bytes, crc: entry.crc32, deflated: method === DEFLATED };
}

function contradicting(local: LocalFileHeader, entry: Entry): string[] {
  const flags = local.generalPurposeBitFlag;
  const pairs: readonly (readonly [what: string, same: boolean])[] = [
    ['name', local.fileName.equals(entry.fileNameRaw)],
    ['compression method', local.compressionMethod === entry.compressionMethod],
    ['encryption flag', (flags & ENCRYPTED) === 0],
    // What was not known when the header was written follows the data.
    ...((flags & SIZES_FOLLOW_DATA) === 0
      ? ([
          ['CRC-32', local.crc32 === entry.crc32],
          ['compressed size', same64(local.compressedSize, entry.compressedSize)],
          ['size', same64(local.uncompressedSize, entry.uncompressedSize)],
        ] as const)
      : []),
  ];
  return pairs.filter(([, same]) => !same).map(([what]) => what);
}

/** A size that does not fit is in the local header's zip64 field, which is of no further use here. */
function same64(local: number, central: number): boolean {
  return local === IN_EXTRA_FIELD || local === central;
}
