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
