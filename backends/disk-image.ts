import type { FileHandle } from 'node:fs/promises';

/** What data that exists says about itself: for which disk it was made, or that it is no disk as it is. */

/** Reads what there is of `length` bytes at `position`, which may be less, or nothing. */
export type ReadAt = (position: number, length: number) => Promise<Buffer>;

/** What cannot be read says nothing: a disk that has begun to fail is served nevertheless. */
export function readerOf(file: FileHandle, start = 0): ReadAt {
  return async (position, length) => {
    const buffer = Buffer.alloc(length);
    const { bytesRead } = await file.read(buffer, 0, length, start + position).catch(() => ({ bytesRead: 0 }));
    return buffer.subarray(0, bytesRead);
  };
}

/** A logical block size, in bytes, and why it is that one. */
export interface ChosenBlockSize {
  readonly bytes: number;
  readonly why: string;
}

const SMALLEST = 512;
const LARGEST = 4096;
const SIZES = [SMALLEST, 1024, 2048, LARGEST];

/** So far, in bytes, goes all that a format is known by. */
const HEAD = 128 * 1024;

interface Format {
  readonly name: string;
  /** Offset of `magic`, in bytes. */
  readonly at: number;
  readonly magic: string;
  /** The smallest block that it was made for, in bytes; null: what it holds may know a smaller one. */
  readonly blockSize: (head: Buffer) => number | null;
}

/** The boot sector of these looks like a partition table's. */
const BOOT_SECTORS: readonly Format[] = [
  { name: 'NTFS', at: 3, magic: 'NTFS    ', blockSize: (head) => head.readUInt16LE(11) },
  { name: 'exFAT', at: 3, magic: 'EXFAT   ', blockSize: (head) => 2 ** head.readUInt8(108) },
];

/**
 * After linux/fs (ext4.h, xfs_format.h, btrfs_tree.h, squashfs_fs.h, isofs), mm/swapfile.c, LVM's label and md_p.h. LUKS2 says in its
 * header which sectors dm-crypt makes of it.
 */
const SUPERBLOCKS: readonly Format[] = [
  { name: 'LUKS', at: 0, magic: 'LUKS\xba\xbe', blockSize: luksSectorSize },
  { name: 'XFS', at: 0, magic: 'XFSB', blockSize: (head) => head.readUInt16BE(102) },
  { name: 'ext4', at: 1024 + 56, magic: '\x53\xef', blockSize: (head) => 1024 * 2 ** head.readUInt32LE(1024 + 24) },
  { name: 'btrfs', at: 65_536 + 64, magic: '_BHRfS_M', blockSize: (head) => head.readUInt32LE(65_536 + 144) },
  { name: 'swap', at: LARGEST - 10, magic: 'SWAPSPACE2', blockSize: () => LARGEST },
  { name: 'squashfs', at: 0, magic: 'hsqs', blockSize: () => SMALLEST },
  { name: 'ISO 9660', at: 32_769, magic: 'CD001', blockSize: () => 2048 },
  { name: 'LVM', at: 512, magic: 'LABELONE', blockSize: () => null },
  { name: 'md', at: 0, magic: '\xfc\x4e\x2b\xa9', blockSize: () => null },
  { name: 'md', at: 4096, magic: '\xfc\x4e\x2b\xa9', blockSize: () => null },
];

/** Files that hold a disk in a form of their own. Negative: from the end. */
const CONTAINERS = [
  { name: 'a qcow2', at: 0, magic: 'QFI\xfb' },
  { name: 'a QED', at: 0, magic: 'QED\0' },
  { name: 'a VMDK', at: 0, magic: 'KDMV' },
  { name: 'a VMDK', at: 0, magic: '# Disk DescriptorFile' },
  { name: 'a VHDX', at: 0, magic: 'vhdxfile' },
  { name: 'a VHD', at: 0, magic: 'conectix' },
  { name: 'a VHD', at: -512, magic: 'conectix' },
  { name: 'a VDI', at: 64, magic: '\x7f\x10\xda\xbe' },
];

/** What to do with one, after what is to be converted. */
export const HOW_TO_SERVE = '(qemu-img convert -O raw), or give a blockSize, and it is served as it is';

const GPT_MAGIC = 'EFI PART';
/** The one entry of an MBR that stands in front of a GPT. */
const PROTECTIVE = 0xee;

/** The name, with its article, of what has to be converted before it is a disk; null: it may well be one. */
export async function containerOf(read: ReadAt, size: number): Promise<string | null> {
  for (const { name, at, magic } of CONTAINERS) {
    const place = at < 0 ? size + at : at;
    if (place >= 0 && hasAt(await read(place, magic.length), 0, magic)) return name;
  }
  return null;
}

/** The block size of data that is to be made. */
export function blockSizeOfNew(size: number): ChosenBlockSize {
  const bytes = SIZES.findLast((each) => size % each === 0) ?? SMALLEST;
  return { bytes, why: bytes === LARGEST ? 'the data is new' : `the data is new, of ${size} bytes` };
}

/**
 * Of data that exists: the largest with which everything that is found in it works.
 * @param own block size of the disk that holds the data; 512 where a file does
 */
export async function blockSizeOf(read: ReadAt, size: number, own: number): Promise<ChosenBlockSize> {
  const head = await headAt(read, 0);
  const gpt = SIZES.find((bytes) => hasAt(head, bytes, GPT_MAGIC));
  if (gpt !== undefined) return { bytes: gpt, why: 'the GPT in it' };
  const partitions = isBootSector(head) ? [] : partitionsOf(head);
  if (partitions.some(({ type }) => type === PROTECTIVE)) {
    // The backup is in the last block.
    for (const bytes of SIZES) {
      const last = await read(Math.max(0, size - bytes), GPT_MAGIC.length);
      if (hasAt(last, 0, GPT_MAGIC)) return { bytes, why: 'the backup of a GPT in it' };
    }
  }
  if (partitions.length > 0) return { bytes: await unitOf(read, partitions), why: 'the MBR in it' };
  const found = formatOf(head);
  if (typeof found?.blockSize === 'number') return { bytes: found.blockSize, why: `the ${found.name} in it` };
  return { bytes: own, why: own === SMALLEST ? 'nothing in it asks for more' : 'the disk below has it' };
}

/** Zeros behind what there is. */
async function headAt(read: ReadAt, position: number): Promise<Buffer> {
  return Buffer.concat([await read(position, HEAD)], HEAD);
}

function hasAt(data: Buffer, at: number, magic: string): boolean {
  return data.toString('latin1', at, at + magic.length) === magic;
}

interface Found {
  readonly name: string;
  readonly blockSize: number | null;
}

function formatOf(head: Buffer): Found | null {
  const format = [...BOOT_SECTORS, ...SUPERBLOCKS].find(({ at, magic }) => hasAt(head, at, magic));
  const found = format === undefined ? fat(head) : { name: format.name, blockSize: format.blockSize(head) };
  if (found === null) return null;
  const blockSize = Math.min(found.blockSize ?? 0, LARGEST);
  return { name: found.name, blockSize: SIZES.includes(blockSize) ? blockSize : null };
}

/** FAT has no magic: what its driver, linux/fs/fat/inode.c, looks at in the BIOS parameter block. */
function fat(head: Buffer): Found | null {
  if (!isSigned(head)) return null;
  const blockSize = head.readUInt16LE(11);
  const media = head.readUInt8(21);
  const isFat =
    [0xeb, 0xe9].includes(head.readUInt8(0)) &&
    SIZES.includes(blockSize) &&
    Number.isInteger(Math.log2(head.readUInt8(13))) &&
    head.readUInt16LE(14) > 0 &&
    [1, 2].includes(head.readUInt8(16)) &&
    (media >= 0xf8 || media === 0xf0);
  return isFat ? { name: 'FAT', blockSize } : null;
}

function isBootSector(head: Buffer): boolean {
  return BOOT_SECTORS.some(({ at, magic }) => hasAt(head, at, magic)) || fat(head) !== null;
}

const isSigned = (head: Buffer): boolean => hasAt(head, 510, '\x55\xaa');

interface Partition {
  readonly type: number;
  /** In blocks of a size that the table does not tell. */
  readonly start: number;
}

/** None where there is no MBR. */
function partitionsOf(head: Buffer): readonly Partition[] {
  if (!isSigned(head)) return [];
  const entries = [446, 462, 478, 494].map((at) => head.subarray(at, at + 16));
  if (entries.some((entry) => ![0, 0x80].includes(entry.readUInt8(0)))) return [];
  return entries
    .map((entry) => ({ type: entry.readUInt8(4), start: entry.readUInt32LE(8) }))
    .filter(({ type, start }) => type !== 0 && start > 0);
}

/** A table of blocks of 4096 bytes is known by what lies where it then says that partitions begin. */
async function unitOf(read: ReadAt, partitions: readonly Partition[]): Promise<number> {
  for (const bytes of [SMALLEST, LARGEST]) {
    for (const { start } of partitions) {
      if (formatOf(await headAt(read, start * bytes)) !== null) return bytes;
    }
  }
  return SMALLEST;
}

function luksSectorSize(head: Buffer): number | null {
  const [, sectorSize] = /"sector_size":\s*(\d+)/.exec(head.toString('latin1', 4096)) ?? [];
  return sectorSize === undefined ? null : Number(sectorSize);
}
