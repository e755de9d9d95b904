import { crc32, deflateRawSync } from 'node:zlib';

/** What a header says of its entry. */
interface Header {
  readonly flags: number;
  readonly method: number;
  readonly crc: number;
  readonly compressedBytes: number;
  readonly bytes: number;
  readonly name: string;
  readonly extra: Buffer;
}

export interface ArchiveMember {
  readonly name: string;
  readonly data: Buffer;
  /** Left out: deflated. */
  readonly stored?: boolean;
  /** In place of what `data` deflates to. */
  readonly compressed?: Buffer;
  readonly zip64?: boolean;
  /** As a program that writes to a pipe: sizes and CRC are behind the data. */
  readonly sizesFollow?: boolean;
  /** Lies, in both headers or in one. */
  readonly both?: Partial<Header>;
  readonly local?: Partial<Header>;
  readonly central?: Partial<Header> & { readonly offset?: number };
}

const LARGE = 0xffffffff;
const LONGEST_MATCH = 258;

/** A zip archive with these members, true or forged. */
export function zipArchive(members: readonly ArchiveMember[]): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let start = 0;
  for (const member of members) {
    const { name, data, stored = false, zip64 = false, sizesFollow = false } = member;
    const compressed = member.compressed ?? (stored ? data : deflateRawSync(data));
    const offset = start;
    const truth: Header = {
      flags: sizesFollow ? 8 : 0,
      method: stored ? 0 : 8,
      crc: crc32(data),
      compressedBytes: compressed.length,
      bytes: data.length,
      name,
      extra: Buffer.alloc(0),
      ...member.both,
    };
    const sizes = [truth.bytes, truth.compressedBytes];
    const small = zip64 ? { compressedBytes: LARGE, bytes: LARGE } : {};
    const local: Header = {
      ...truth,
      ...small,
      ...(zip64 ? { extra: zip64Field(sizes) } : {}),
      ...(sizesFollow ? { crc: 0, compressedBytes: 0, bytes: 0 } : {}),
      ...member.local,
    };
    const central = {
      ...truth,
      ...small,
      ...(zip64 ? { extra: zip64Field([...sizes, offset]) } : {}),
      ...member.central,
    };
    const part = [integers([0x04034b50, 4]), header(local), Buffer.from(local.name), local.extra, compressed];
    if (sizesFollow) part.push(integers([0x08074b50, 4], [truth.crc, 4], [compressed.length, 4], [data.length, 4]));
    parts.push(...part);
    start += Buffer.concat(part).length;
    directory.push(
      integers([0x02014b50, 4], [45, 2]),
      header(central),
      integers([0, 2], [0, 2], [0, 2], [0, 4], [member.central?.offset ?? (zip64 ? LARGE : offset), 4]),
      Buffer.from(central.name),
      central.extra,
    );
  }
  const size = Buffer.concat(directory).length;
  const zip64 = members.some((member) => member.zip64 === true);
  const count = members.length;
  const end64 = integers(
    ...([
      [0x06064b50, 4],
      [44, 8],
      [45, 2],
      [45, 2],
      [0, 4],
      [0, 4],
      [count, 8],
      [count, 8],
      [size, 8],
      [start, 8],
    ] as const),
    ...([
      [0x07064b50, 4],
      [0, 4],
      [start + size, 8],
      [1, 4],
    ] as const),
  );
  const end = zip64
    ? integers([0x06054b50, 4], [0, 2], [0, 2], [0xffff, 2], [0xffff, 2], [LARGE, 4], [LARGE, 4], [0, 2])
    : integers([0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [size, 4], [start, 4], [0, 2]);
  return Buffer.concat([...parts, ...directory, ...(zip64 ? [end64] : []), end]);
}

/** What local headers and those of the central directory have in common. */
function header({ flags, method, crc, compressedBytes, bytes, name, extra }: Header): Buffer {
  return integers(
    ...([
      [45, 2],
      [flags, 2],
      [method, 2],
      [0, 2],
      [0x21, 2],
      [crc, 4],
      [compressedBytes, 4],
      [bytes, 4],
    ] as const),
    ...([
      [Buffer.byteLength(name), 2],
      [extra.length, 2],
    ] as const),
  );
}

function zip64Field(values: readonly number[]): Buffer {
  return integers([1, 2], [8 * values.length, 2], ...values.map((value) => [value, 8] as const));
}

/** Little-endian. */
export function integers(...fields: readonly (readonly [value: number, bytes: number])[]): Buffer {
  return Buffer.concat(
    fields.map(([value, bytes]) => {
      const buffer = Buffer.alloc(8);
      buffer.writeBigUInt64LE(BigInt(value));
      return buffer.subarray(0, bytes);
    }),
  );
}

/** Zeros, some MiB at least, in a single deflate block with fixed codes: a literal, then matches of 258 bytes at distance 1. */
export function singleBlock(name: string, atLeast: number): ArchiveMember {
  // Bits, first to last: last block 1, type 10; literal 0 00110000; then 11000101 00000 for each match.
  const match = [1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0];
  const bits: number[] = [1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0];
  let matches = 0;
  for (; bits.length % 8 !== 0; matches++) bits.push(...match);
  const eight = asBytes(Array.from({ length: 8 }, () => match).flat());
  const repeats = Math.ceil(atLeast / (8 * LONGEST_MATCH));
  const compressed = Buffer.concat([asBytes(bits), Buffer.alloc(repeats * eight.length, eight), Buffer.alloc(1)]);
  const bytes = 1 + LONGEST_MATCH * (matches + 8 * repeats);
  let crc = 0;
  const zeros = Buffer.alloc(2 ** 20);
  for (let at = 0; at < bytes; at += zeros.length) crc = crc32(zeros.subarray(0, bytes - at), crc);
  return { name, data: Buffer.alloc(0), compressed, both: { bytes, crc } };
}

function asBytes(bits: readonly number[]): Buffer {
  const bytes = Buffer.alloc(bits.length / 8);
  bits.forEach((bit, index) => (bytes[index >> 3] = (bytes[index >> 3] ?? 0) | (bit << (index & 7))));
  return bytes;
}
