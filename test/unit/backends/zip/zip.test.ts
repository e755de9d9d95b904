import { execFileSync } from 'node:child_process';
import { fstatSync, openSync, readdirSync, readFileSync, renameSync, statSync, unlinkSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import t from 'tap';
import type { OpenBackend } from '../../../../backends/interface.js';
import { zipBackend, zipOptions } from '../../../../backends/zip/zip.js';
import { SupervisorError } from '../../../../src/errors.js';
import { integers, singleBlock, zipArchive, type ArchiveMember } from './zip-archive.js';

const KIB = 1024;
const directory = t.testdir();
const path = join(directory, 'archive.zip');

/** Compresses well, and is not the same anywhere. */
function lines(bytes: number): Buffer {
  const text = Array.from({ length: bytes / 16 }, (_none, index) => `${String(index * 7).padStart(15)}\n`).join('');
  return Buffer.from(text.padEnd(bytes, '.'));
}

const image: ArchiveMember = { name: 'disk.img', data: lines(300 * KIB) };

async function open(archive: Buffer, entry?: string, blockSize: number | null = 4096): Promise<OpenBackend> {
  await writeFile(path, archive);
  const options = zipOptions.parse({ type: 'zip', path, ...(entry === undefined ? {} : { entry }) });
  return zipBackend.open(options, { device: 'a', blockSize, readOnly: false });
}

/** The size of the device, in bytes. */
async function sizeOf(archive: Buffer, entry?: string, blockSize?: number): Promise<number> {
  const backend = await open(archive, entry, blockSize);
  await backend.close();
  await backend.remove();
  return backend.size;
}

/** Why the archive is not served. */
async function refusal(archive: Buffer, entry?: string): Promise<string> {
  try {
    return `accepted with ${await sizeOf(archive, entry)} bytes`;
  } catch (error) {
    if (!(error instanceof SupervisorError && error.code === 'BACKEND' && error.device === 'a')) throw error;
    return error.message.replace(`opening archive ${path} failed: `, '');
  }
}

const openFiles = (): number => readdirSync('/proc/self/fd').length;

t.test('a deflated and a stored entry, with and without zip64, with sizes before or behind the data', async (t) => {
  for (const stored of [false, true]) {
    for (const zip64 of [false, true]) {
      for (const sizesFollow of [false, true]) {
        t.equal(await sizeOf(zipArchive([{ ...image, stored, zip64, sizesFollow }])), 300 * KIB);
      }
    }
  }
});

t.test('what other programs write is accepted', async (t) => {
  const script =
    'import sys, zipfile\n' +
    'z = zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED)\n' +
    'z.writestr("disk.img", b"0123456789abcdef" * 65536)\n' +
    'z.open("large.img", "w", force_zip64=True).write(b"01234567" * 262144)\n' +
    'z.close()';
  execFileSync('python3', ['-c', script, path]);
  const archive = readFileSync(path);
  t.equal(await sizeOf(archive), 2048 * KIB);
  t.equal(await sizeOf(archive, 'disk.img'), 1024 * KIB);
});

t.test('the size is rounded up to whole blocks', async (t) => {
  const archive = zipArchive([{ name: 'a', data: Buffer.alloc(513, 1) }]);
  t.equal(await sizeOf(archive, undefined, 512), 1024);
  t.equal(await sizeOf(archive, undefined, 4096), 4096);
  t.equal(await sizeOf(zipArchive([{ name: 'a', data: Buffer.alloc(1) }]), undefined, 512), 512);
});

t.test('without a word of the user an entry has the blocks that it was made for', async (t) => {
  const before = openFiles();
  for (const stored of [true, false]) {
    const disk = Buffer.alloc(64 * KIB);
    disk.write('EFI PART', 4096);
    const backend = await open(zipArchive([{ name: 'disk', data: disk, stored }]), undefined, null);
    t.match(backend, { blockSize: 4096, choices: [{ what: 'blockSize', value: 4096, why: 'the GPT in it' }] });
    await backend.close();
    const vhdx = zipArchive([{ name: 'disk', data: Buffer.from('vhdxfile'.padEnd(64 * KIB, '\0')), stored }]);
    await t.rejects(open(vhdx, undefined, null), {
      message: /its entry "disk" is a VHDX image; unpack and convert it/,
    });
  }
  const damaged = zipArchive([image]);
  damaged.fill(0xff, 60, 90);
  await t.rejects(open(damaged, undefined, null), { message: /its entry "disk.img" cannot be served: / });
  t.equal(openFiles(), before);
});

t.test('the entry that is named, or the largest', async (t) => {
  const archive = zipArchive([
    { name: 'directory/', data: Buffer.alloc(0), stored: true },
    { name: 'small', data: lines(8 * KIB), stored: true },
    { name: 'directory/large', data: lines(64 * KIB) },
    { name: 'medium', data: lines(32 * KIB) },
  ]);
  t.equal(await sizeOf(archive), 64 * KIB);
  t.equal(await sizeOf(archive, 'medium'), 32 * KIB);
  t.equal(await sizeOf(archive, 'small'), 8 * KIB);
  t.equal(await refusal(archive, 'other'), 'it has no entry "other" among "small", "directory/large", "medium"');
  t.match(await refusal(archive, 'directory/'), /^it has no entry "directory\/" among /);
  t.equal(await refusal(zipArchive([{ name: 'd/', data: Buffer.alloc(0) }])), 'it has no file in it');
  t.equal(await refusal(zipArchive([])), 'it has no file in it');
});

t.test('the device is read-only, its files are the archive and a sealed index, and both are closed', async (t) => {
  const before = openFiles();
  const backend = await open(zipArchive([image]));
  t.match(backend, { facts: { readOnly: true, discard: false, volatileCache: false }, created: false });
  const [archive, index, ...others] = backend.files;
  t.strictSame(others, []);
  t.equal(fstatSync(archive ?? -1).ino, statSync(path).ino);
  t.ok(fstatSync(index ?? -1).size >= 64 * KIB);
  await backend.close();
  await backend.remove();
  t.equal(openFiles(), before);
  t.ok(readFileSync(path).length > 0, 'the archive is nobody’s to remove');
});

t.test('the users of a device are given nothing but the entry that it was made of', async (t) => {
  const before = openFiles();
  const image = (seed: number): Buffer => zipArchive([{ name: 'disk.img', data: Buffer.alloc(64 * KIB, seed) }]);
  const first = await open(image(1));
  const { size, facts, identity } = first;
  const reopen = (files: readonly number[], size: number | null): Promise<OpenBackend> =>
    zipBackend.open(zipOptions.parse({ type: 'zip', path }), {
      device: 'a',
      blockSize: 4096,
      readOnly: false,
      inherited: { files, size, blockSize: 4096, announced: { size: 64 * KIB, blockSize: null, facts, identity } },
    });
  const leave = (): number[] => [openSync(`/proc/self/fd/${String(first.files[0])}`, 'r'), openSync('/dev/null', 'r')];
  const { ino } = statSync(path);
  const other =
    /its entry "disk\.img" has CRC-32 [0-9a-f]{8} and 65536 bytes, its device was made of CRC-32 .*put that back$/;

  await writeFile(`${path}.new`, image(2));
  renameSync(`${path}.new`, path);
  await t.rejects(reopen([], size), { code: 'BACKEND', message: other });
  const kept = await reopen(leave(), size);
  t.equal(fstatSync(kept.files[0] ?? -1).ino, ino, 'it was left open, and is the one that is served');
  t.match(kept, { size, identity, warning: /archive .*archive\.zip is gone, or another file by now/ });
  await kept.close();
  const unused = await reopen([], null);
  t.not(unused.identity, identity);
  await unused.close();

  unlinkSync(path);
  await t.rejects(reopen([], size), { code: 'BACKEND', message: /\(ENOENT\)$/ });
  const gone = await reopen(leave(), size);
  t.match(gone, { size, identity, warning: /is gone, or another file by now/ });
  await gone.close();

  await (await open(image(1))).close();
  const copied = await reopen([], size);
  t.strictSame([copied.identity, copied.warning], [identity, undefined], 'the same data is as good');
  await copied.close();
  await first.close();
  t.equal(openFiles(), before);
});

t.test('an archive that cannot be opened', async (t) => {
  const openPath = (path: string): Promise<OpenBackend> =>
    zipBackend.open({ type: 'zip', path }, { device: 'a', blockSize: 4096, readOnly: false });
  execFileSync('mkfifo', [join(directory, 'pipe')]);
  await t.rejects(openPath(join(directory, 'pipe')), {
    code: 'BACKEND',
    message: /pipe failed: it is not a regular file$/,
  });
  await t.rejects(openPath(directory), { code: 'BACKEND', message: /failed: it is not a regular file$/ });
  await t.rejects(openPath(join(directory, 'none')), {
    code: 'BACKEND',
    message: /^opening archive .*none failed: no such file or directory \(ENOENT\)$/,
  });
});

/** The archive, and what is said of it. */
const hostile: Readonly<Record<string, readonly [Buffer, RegExp]>> = {
  'no archive': [lines(64 * KIB), /^it is no zip archive, or its end is missing$/],
  nothing: [Buffer.alloc(0), /^it is no zip archive, or its end is missing$/],
  truncated: [zipArchive([image]).subarray(0, -100), /^it is no zip archive, or its end is missing$/],
  'truncated in front': [
    zipArchive([image]).subarray(1000),
    /^it is truncated or damaged: it refers to places that it does not have$/,
  ],
  'a name that drives a terminal': [
    zipArchive([{ ...image, name: 'a\u001b[2J\n', both: { flags: 0x800, method: 99 } }]),
    /^its entry "a\\u001b\[2J\\n" is compressed with AES encryption \(method 99\); only stored and deflated ones/,
  ],
  encrypted: [zipArchive([{ ...image, both: { flags: 1 } }]), /^its entry "disk.img" is encrypted$/],
  'strongly encrypted': [zipArchive([{ ...image, both: { flags: 0x41 } }]), /^its entry "disk.img" is encrypted$/],
  empty: [zipArchive([{ name: 'a', data: Buffer.alloc(0) }]), /^its entry "a" is empty$/],
  'the same entry twice': [
    zipArchive([image, { ...image, central: { offset: 0 } }]),
    /"disk.img" and "disk.img" overlap$/,
  ],
  'an entry within the data of another': [
    zipArchive([
      { ...image, stored: true, name: 'a' },
      { ...image, central: { offset: 5000 }, name: 'b' },
    ]),
    /^its entries "a" and "b" overlap$/,
  ],
  'data that the local header alone moves into the next entry': [
    changed(zipArchive([image, { ...image, name: 'b' }]), (archive) => archive.writeUInt16LE(40, 28)),
    /^its entries "disk.img" and "b" overlap$/,
  ],
  'data behind the end': [
    zipArchive([{ ...image, both: { compressedBytes: 10_000_000 } }]),
    /^its entry "disk.img" goes on behind the end of the archive$/,
  ],
  'a header behind the end': [
    zipArchive([{ ...image, central: { offset: 0xfffffff0 } }]),
    /^it is truncated or damaged: it refers to places that it does not have$/,
  ],
  'no header where it should be': [
    zipArchive([{ ...image, central: { offset: 7 } }]),
    /^its entry "disk.img" is not where the archive says$/,
  ],
  'more expansion than there is': [
    zipArchive([{ ...image, both: { bytes: 2 ** 31 } }]),
    /^its entry "disk.img" cannot have 2147483648 bytes, deflated to [0-9]+$/,
  ],
  'more than is read through': [
    zipArchive([{ ...image, zip64: true, central: { extra: zip64Sizes(2 ** 40, 2 ** 34) } }]),
    /^its entry "disk.img" is larger than 64 GiB; unpack it and serve the file$/,
  ],
  'longer than it says': [
    zipArchive([{ ...image, both: { bytes: 299 * KIB } }]),
    /^its entry "disk.img" cannot be served: it is longer than the 306176 bytes that the archive says$/,
  ],
  'shorter than it says': [
    zipArchive([{ ...image, both: { bytes: 301 * KIB } }]),
    /cannot be served: it has 307200 bytes, the archive says 308224$/,
  ],
  'less compressed data than it says': [
    zipArchive([{ ...image, compressed: Buffer.concat([deflateRawSync(image.data), Buffer.alloc(9)]) }]),
    /cannot be served: its compressed data has [0-9]+ bytes, the archive says [0-9]+$/,
  ],
  'compressed data that ends early': [
    zipArchive([{ ...image, compressed: deflateRawSync(image.data).subarray(0, -5) }]),
    /cannot be served: its compressed data ends too early$/,
  ],
  'damaged data': [
    zipArchive([{ ...image, compressed: deflateRawSync(image.data).fill(0xff, 0, 1) }]),
    /cannot be served: its compressed data is damaged$/,
  ],
  'another CRC-32': [
    zipArchive([{ ...image, both: { crc: 0x1234abcd } }]),
    /cannot be served: its CRC-32 is [0-9a-f]{8}, the archive says 1234abcd$/,
  ],
  'another CRC-32, stored': [
    zipArchive([{ ...image, stored: true, both: { crc: 1 } }]),
    /cannot be served: its CRC-32 is [0-9a-f]{8}, the archive says 00000001$/,
  ],
  'stored in less bytes than it has': [
    zipArchive([{ ...image, stored: true, both: { bytes: 301 * KIB } }]),
    /^its entry "disk.img" is stored in 307200 bytes and cannot have 308224$/,
  ],
  'headers that contradict each other': [
    zipArchive([{ ...image, local: { name: 'disk.iso', method: 0, crc: 1, compressedBytes: 1, bytes: 1, flags: 1 } }]),
    /has another name, compression method, encryption flag, CRC-32, compressed size, size in its local header than in/,
  ],
};

t.test('what is odd about other entries, and around the archive, is no reason', async (t) => {
  const odd: Readonly<Record<string, ArchiveMember>> = {
    'a name that leads upwards': { ...image, name: '../x' },
    'an absolute name': { ...image, name: '/etc/x' },
    'a drive letter': { ...image, name: 'C:\\x' },
    'strong encryption': { ...image, name: 'x', both: { flags: 0x41 } },
    'a directory with a size': { name: 'x/', data: lines(KIB), stored: true },
    'another stored size': { ...image, name: 'x', stored: true, both: { bytes: 7 } },
    'an extra field that is longer than it is': {
      ...image,
      name: 'x',
      central: { extra: integers([1, 2], [999, 2], [0, 4]) },
    },
    'another local name': { ...image, name: 'x', local: { name: 'y' } },
    'a place that is not there': { ...image, name: 'x', central: { offset: 0x7fffffff } },
  };
  for (const [what, member] of Object.entries(odd)) {
    t.equal(await sizeOf(zipArchive([member, image]), 'disk.img'), 300 * KIB, what);
  }
  const archive = zipArchive([image]);
  const text = Buffer.from('#!/bin/sh\necho PK\x05\x06\n');
  t.equal(await sizeOf(Buffer.concat([text, archive])), 300 * KIB, 'something in front');
  t.equal(await sizeOf(Buffer.concat([archive, Buffer.alloc(100_000)])), 300 * KIB, 'padding behind');
  t.equal(await sizeOf(Buffer.concat([archive, text])), 300 * KIB, 'text behind');
  t.equal(await sizeOf(Buffer.concat([text, zipArchive([{ ...image, zip64: true }]), text])), 300 * KIB, 'both, zip64');
});

t.test('a name may be meant in several ways', async (t) => {
  const named = (name: string): Buffer =>
    zipArchive([
      { ...image, name },
      { name: 'b', data: lines(4 * KIB) },
    ]);
  t.equal(await sizeOf(named('дискета.img'), 'дискета.img'), 300 * KIB, 'UTF-8 that does not say so');
  t.equal(await sizeOf(named('e\u0301.img'), '\u00e9.img'), 300 * KIB, 'composed otherwise');
  t.equal(await sizeOf(named('./disk.img'), 'disk.img'), 300 * KIB);
  const dos = Buffer.from(named('disk_.img').toString('latin1').replaceAll('disk_', 'disk\x82'), 'latin1');
  t.equal(await sizeOf(dos, 'disk\u00e9.img'), 300 * KIB, 'code page 437');
  const both = zipArchive([
    { ...image, name: './a' },
    { name: 'a', data: lines(4 * KIB) },
  ]);
  t.equal(await sizeOf(both, 'a'), 4 * KIB, 'exactly, rather than alike');
});

t.test('a symbolic link is no disk', async (t) => {
  const archive = zipArchive([
    { name: 'link', data: lines(8 * KIB), stored: true },
    { name: 'b', data: lines(4 * KIB) },
  ]);
  const link = changed(archive, (copy) => {
    const entry = copy.indexOf('PK\x01\x02', 0, 'latin1');
    copy.writeUInt8(3, entry + 5);
    copy.writeUInt16LE(0o120777, entry + 40);
  });
  t.equal(await sizeOf(link), 4 * KIB);
  t.equal(await refusal(link, 'link'), 'its entry "link" is a symbolic link; name what it leads to');
});

t.test('an archive may have more entries than it can count, and is found soon', async (t) => {
  const many = Array.from({ length: 70_000 }, (_none, index) => ({
    name: `${'directory/'.repeat(6)}${index}`,
    data: Buffer.alloc(1),
    stored: true,
  }));
  const archive = zipArchive([...many, image]);
  const began = performance.now();
  t.equal(await sizeOf(archive, 'disk.img'), 300 * KIB);
  t.match(
    await refusal(archive, 'none'),
    /^it has no entry "none" among 70001, such as "directory.*0", "directory.*1",/,
  );
  t.ok(performance.now() - began < 20_000, String(performance.now() - began));
});

t.test('one deflate block may be the whole entry', async (t) => {
  t.ok((await sizeOf(zipArchive([singleBlock('disk', 80 * 1024 * KIB)]))) > 80 * 1024 * KIB);
});

t.test('hostile archives are refused, each for what it is', async (t) => {
  const before = openFiles();
  for (const [what, [archive, reason]] of Object.entries(hostile)) {
    const began = performance.now();
    t.match(await refusal(archive), reason, what);
    t.ok(performance.now() - began < 5_000, `${what} is refused soon`);
  }
  t.equal(openFiles(), before);
});

t.test('two entries of one name are refused where that name is meant', async (t) => {
  const archive = zipArchive([image, image, { ...image, name: 'b' }]);
  t.equal(await refusal(archive, 'disk.img'), 'it has two entries "disk.img"');
  t.equal(await sizeOf(archive, 'b'), 300 * KIB);
});

t.test('places that no file has are not looked at', async (t) => {
  const archive = zipArchive([{ ...image, zip64: true }]);
  const locator = archive.length - 22 - 20;
  const far = /^it is truncated or damaged: it refers to places that it does not have$/;
  t.match(await refusal(changed(archive, (copy) => copy.writeBigUInt64LE(2n ** 63n, locator - 8))), far);
  t.match(
    await refusal(changed(archive, (copy) => copy.writeBigUInt64LE(2n ** 62n, locator - 16))),
    /^its directory of [0-9]+ bytes is too large$/,
  );
  // Where the record is and how many entries there are nobody needs to be told.
  t.equal(await sizeOf(changed(archive, (copy) => copy.writeBigUInt64LE(2n ** 64n - 1n, locator + 8))), 300 * KIB);
  t.equal(await sizeOf(changed(archive, (copy) => copy.writeBigUInt64LE(2n ** 62n, locator - 24))), 300 * KIB);
});

t.test('an archive of many entries is opened soon', async (t) => {
  const archive = zipArchive(
    Array.from({ length: 5000 }, (_none, index) => ({ name: String(index), data: Buffer.alloc(1), stored: true })),
  );
  const began = performance.now();
  t.equal(await sizeOf(archive, '4999'), 4096);
  t.ok(performance.now() - began < 10_000, String(performance.now() - began));
});

t.test('whatever byte is changed, the archive is refused or one of its entries is what it was', async (t) => {
  const archive = zipArchive([
    { ...image, zip64: true },
    { name: 'b', data: lines(4 * KIB), stored: true },
  ]);
  const outcomes = new Set<string>();
  let state = 1;
  const random = (limit: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
  const deadline = performance.now() + 5_000;
  for (let round = 0; round < 400 && performance.now() < deadline; round++) {
    // Most of them where the headers are.
    const offset = round % 4 === 0 ? random(archive.length) : archive.length - 1 - random(300);
    outcomes.add(await refusal(changed(archive, (copy) => copy.writeUInt8(random(256), offset))));
  }
  for (const outcome of outcomes) {
    if (outcome.startsWith('accepted')) t.match(outcome, /^accepted with (307200|4096) bytes$/);
    t.notMatch(outcome, /undefined|Cannot read|is not a function|out of range|outside buffer/);
  }
  t.ok(outcomes.size > 5);
});

function changed(archive: Buffer, change: (archive: Buffer) => void): Buffer {
  const copy = Buffer.from(archive);
  change(copy);
  return copy;
}

/** The zip64 field of a header in the central directory. */
function zip64Sizes(bytes: number, compressedBytes: number): Buffer {
  return integers([1, 2], [24, 2], [bytes, 8], [compressedBytes, 8], [0, 8]);
}
