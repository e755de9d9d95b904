import type { FileHandle } from 'node:fs/promises';
import { show } from '../../src/problems.js';
import type { ZipEntryData } from './indexer.js';
import { entriesOf, findDirectory, readPiece, type Directory, type DirectoryEntry } from './directory.js';
import { likeness, nameOf } from './names.js';

export interface ArchiveEntry extends ZipEntryData {
  readonly name: string;
}

/** Reading an entry through takes a time in proportion to its size. */
const MOST_BYTES = 64 * 2 ** 30;
/** A deflate stream cannot expand by more than this. */
const MOST_EXPANSION = 1032;
/** What is said of an entry that is not there. */
const MOST_NAMED = 5;

const LOCAL_HEADER = 0x04034b50;
const LOCAL_HEADER_BYTES = 30;
const STORED = 0;
const DEFLATED = 8;
const ENCRYPTED = 0x1;
const SIZES_FOLLOW_DATA = 0x8;
const IN_EXTRA_FIELD = 0xffffffff;
/** APPNOTE.TXT 4.4.5. */
const METHODS: Readonly<Record<number, string>> = {
  1: 'shrunk',
  6: 'imploded',
  9: 'Deflate64',
  12: 'bzip2',
  14: 'LZMA',
  20: 'zstd',
  93: 'zstd',
  95: 'XZ',
  98: 'PPMd',
  99: 'AES encryption',
};
const ONLY = 'only stored and deflated ones can be served; unpack it and serve the file';

/**
 * Finds an entry, by default the only or the largest one, in an archive of `size` bytes, and checks what the archive
 * says of it. Reads no data. Rejects with an Error that says what is wrong.
 */
export async function findEntry(archive: FileHandle, size: number, wanted: string | undefined): Promise<ArchiveEntry> {
  const directory = await findDirectory(archive, size);
  const found = await chosen(archive, size, directory, wanted);
  const entry = await checkedEntry(archive, size, directory, found);
  await refuseOverlap(archive, size, directory, found, entry);
  return entry;
}

async function chosen(
  archive: FileHandle,
  size: number,
  directory: Directory,
  wanted: string | undefined,
): Promise<DirectoryEntry> {
  let largest: DirectoryEntry | undefined;
  const like: Record<'same' | 'alike', DirectoryEntry[]> = { same: [], alike: [] };
  const others: string[] = [];
  let files = 0;
  for await (const entries of entriesOf(archive, size, directory)) {
    for (const entry of entries) {
      if (isDirectory(entry)) continue;
      if (wanted !== undefined) {
        const how = likeness(entry, wanted);
        if (how !== null && like[how].length < 2) like[how].push(entry);
        if (others.length < MOST_NAMED) others.push(show(nameOf(entry)));
      } else if (!entry.isLink && entry.bytes > (largest?.bytes ?? -1)) {
        largest = entry;
      }
      files++;
    }
  }
  if (wanted === undefined) {
    if (largest === undefined) throw new Error('it has no file in it');
    return largest;
  }
  const [found, another] = like.same.length > 0 ? like.same : like.alike;
  if (another !== undefined) throw new Error(`it has two entries ${show(wanted)}`);
  if (found !== undefined) return found;
  const many = files > others.length ? `${files}, such as ` : '';
  throw new Error(`it has no entry ${show(wanted)} among ${files === 0 ? 'none' : `${many}${others.join(', ')}`}`);
}

const isDirectory = ({ rawName }: DirectoryEntry): boolean => rawName.at(-1) === '/'.charCodeAt(0);

/** `entry` with its local header, which has to say the same as the central directory. */
async function checkedEntry(
  archive: FileHandle,
  size: number,
  directory: Directory,
  entry: DirectoryEntry,
): Promise<ArchiveEntry> {
  const { method, compressedBytes, bytes, crc, flags, headerOffset } = entry;
  const name = nameOf(entry);
  const refuse = (reason: string): Error => new Error(`its entry ${show(name)} ${reason}`);
  if (entry.isLink) throw refuse('is a symbolic link; name what it leads to');
  if ((flags & ENCRYPTED) !== 0) throw refuse('is encrypted');
  if (method !== STORED && method !== DEFLATED) {
    const known = METHODS[method];
    const said = known === undefined ? `method ${method}` : `${known} (method ${method})`;
    throw refuse(`is compressed with ${said}; ${ONLY}`);
  }
  if (bytes === 0) throw refuse('is empty');
  if (Math.max(bytes, compressedBytes) > MOST_BYTES) {
    throw refuse(`is larger than ${MOST_BYTES / 2 ** 30} GiB; unpack it and serve the file`);
  }
  if (method === DEFLATED && bytes > compressedBytes * MOST_EXPANSION) {
    throw refuse(`cannot have ${bytes} bytes, deflated to ${compressedBytes}`);
  }
  if (method === STORED && bytes !== compressedBytes) {
    throw refuse(`is stored in ${compressedBytes} bytes and cannot have ${bytes}`);
  }
  const local = await readPiece(archive, size, headerOffset, LOCAL_HEADER_BYTES);
  if (local.readUInt32LE(0) !== LOCAL_HEADER) {
    throw refuse(`is not where the archive says${isCutTo32Bits(directory) ? CUT_TO_32_BITS : ''}`);
  }
  const nameBytes = local.readUInt16LE(26);
  const localName = await readPiece(archive, size, headerOffset + LOCAL_HEADER_BYTES, nameBytes);
  const contradictions = contradicting(local, localName, entry);
  if (contradictions.length > 0) {
    throw refuse(`has another ${contradictions.join(', ')} in its local header than in the central directory`);
  }
  const dataOffset = headerOffset + LOCAL_HEADER_BYTES + nameBytes + local.readUInt16LE(28);
  if (dataOffset + compressedBytes > directory.start) throw refuse('goes on behind the end of the archive');
  return { name, dataOffset, compressedBytes, bytes, crc, deflated: method === DEFLATED };
}

const CUT_TO_32_BITS =
  ', which is cut to 32 bits (macOS writes such archives from 4 GiB on); unpack it and serve the file';

const isCutTo32Bits = ({ shift }: Directory): boolean => shift > 0 && shift % 2 ** 32 === 0;

function contradicting(local: Buffer, localName: Buffer, entry: DirectoryEntry): string[] {
  const flags = local.readUInt16LE(6);
  const pairs: readonly (readonly [what: string, same: boolean])[] = [
    ['name', localName.equals(entry.rawName)],
    ['compression method', local.readUInt16LE(8) === entry.method],
    ['encryption flag', (flags & ENCRYPTED) === 0],
    // What was not known when the header was written follows the data.
    ...((flags & SIZES_FOLLOW_DATA) === 0
      ? ([
          ['CRC-32', local.readUInt32LE(14) === entry.crc],
          ['compressed size', same64(local.readUInt32LE(18), entry.compressedBytes)],
          ['size', same64(local.readUInt32LE(22), entry.bytes)],
        ] as const)
      : []),
  ];
  return pairs.filter(([, same]) => !same).map(([what]) => what);
}

/** A size that does not fit is in the local header's zip64 field, which is of no further use here. */
function same64(local: number, central: number): boolean {
  return local === IN_EXTRA_FIELD || local === central;
}

/** Data that is shared by entries makes an archive unpack to many times what it could. */
async function refuseOverlap(
  archive: FileHandle,
  size: number,
  directory: Directory,
  found: DirectoryEntry,
  { dataOffset, compressedBytes }: ArchiveEntry,
): Promise<void> {
  const end = dataOffset + compressedBytes;
  let here = 0;
  for await (const entries of entriesOf(archive, size, directory)) {
    for (const entry of entries) {
      const { headerOffset } = entry;
      if (headerOffset < found.headerOffset || headerOffset >= end) continue;
      // It is among them, itself.
      if (headerOffset === found.headerOffset && ++here === 1) continue;
      throw new Error(`its entries ${show(nameOf(found))} and ${show(nameOf(entry))} overlap`);
    }
  }
}
