import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import type { TestContext } from 'node:test';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { Load, verifiedWrites } from './fio.js';
import { RunningSupervisor, assertNothingLeft, ok, root, shell, waitFor } from './harness.js';
import { random } from './random.js';
import type { DeviceStatus, OperationStatus, QueueStatus } from '../../src/api/status.js';

/** What every device has to do, whatever serves it: `testBackends`, and the pieces of it that other tests use. */

const KiB = 2 ** 10;
const MiB = 2 ** 20;
const PAGE = 4096;
/** Of a device's beginning; what is behind has to survive the processes that are killed meanwhile. */
const FIO_BYTES = MiB;
export const IMAGE_BYTES = 4 * MiB + PAGE;
/** Ample for queue processes that boot node on a busy emulated machine. */
const RECOVERY_TIMEOUT_MS = 60_000;

export const ext4 = { make: ['mkfs.ext4', '-q'], check: ['e2fsck', '-fn'] } as const;

/** A small folder, and as an image: an ext4 of 4 MiB in which it is the folder `tree`. */
export interface Sample {
  readonly tree: string;
  readonly image: Buffer;
}

/** What a device has to announce, and what has to be on it. */
export interface Expected {
  /** Bytes. */
  readonly size: number;
  readonly blockSize: number;
  /** Whether FLUSH and FUA reach the backend. */
  readonly writeCache: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
  /** It cannot be written to, and has the sample's image on it. */
  readonly readOnly: boolean;
  /** Reads zeros whatever was written. */
  readonly forgets: boolean;
  /** How many queue processes are killed under load; below the restart limit. */
  readonly kills: number;
}

/** A backend under test: the device's configuration, and where it is not what most backends announce. */
export interface Row {
  readonly name: string;
  readonly backend: object;
  readonly settings?: { readonly queues?: number; readonly depth?: number; readonly dataPath?: string };
  readonly expected: Pick<Expected, 'size' | 'kills'> & Partial<Expected>;
}

export async function makeSample(): Promise<Sample> {
  await shell(`
    mkdir -p /tmp/sample/tree
    cp -r ${root}src/js-backend /tmp/sample/tree
    head -c 1M /dev/urandom > /tmp/sample/tree/random
    mke2fs -q -t ext4 -b 4096 -d /tmp/sample /tmp/sample.img ${IMAGE_BYTES / KiB}k`);
  return { tree: '/tmp/sample/tree', image: await readFile('/tmp/sample.img') };
}

const usual = {
  blockSize: PAGE,
  writeCache: true,
  discard: true,
  writeZeroes: true,
  readOnly: false,
  forgets: false,
} as const;

/** Different at every place of it, so that data of another place, queue or time is noticed. */
const noise = randomBytes(4 * MiB);

/** `length` bytes, at least 4, that no two calls give alike. */
export function fresh(length: number): Buffer {
  const start = random(noise.length - length);
  const data = Buffer.from(noise.subarray(start, start + length));
  data.writeUInt32LE(random(2 ** 32), 0);
  return data;
}

export const isZero = (data: Buffer): boolean => data.equals(Buffer.alloc(data.length));

export const pathOf = ({ name, path }: DeviceStatus): string => path ?? assert.fail(`${name} has no path`);

/** A device and what has to be on it. */
export class Disk {
  readonly name: string;
  readonly blockSize: number;
  readonly size: number;
  readonly path: string;
  readonly direct: DirectFile;
  readonly mirror: Buffer;
  readonly #forgets: boolean;

  private constructor(status: DeviceStatus, direct: DirectFile, content: Buffer, forgets: boolean) {
    this.name = status.name;
    this.blockSize = status.blockSize;
    this.size = status.size;
    this.path = pathOf(status);
    this.direct = direct;
    this.mirror = content;
    this.#forgets = forgets;
  }

  /** A fresh device, which most backends fill with zeros; `forgets`: for ever. */
  static async open(status: DeviceStatus, forgets = false): Promise<Disk> {
    return new Disk(status, await DirectFile.open(pathOf(status)), Buffer.alloc(status.size), forgets);
  }

  /** A device that cannot be written to. */
  static async openReadOnly(status: DeviceStatus, content: Buffer): Promise<Disk> {
    return new Disk(status, await DirectFile.openReadOnly(pathOf(status)), content, false);
  }

  /** That `data` was written. */
  wrote(offset: number, data: Buffer): void {
    if (!this.#forgets) data.copy(this.mirror, offset);
  }

  async write(offset: number, length: number): Promise<void> {
    const data = fresh(length);
    assert.equal(await this.direct.write(offset, data), length);
    this.wrote(offset, data);
  }

  /** Through the page cache, at any offset. */
  async writeBuffered(offset: number, length: number): Promise<void> {
    const data = fresh(length);
    await using cached = await open(this.path, 'r+');
    assert.equal((await cached.write(data, 0, length, offset)).bytesWritten, length);
    await cached.datasync();
    this.wrote(offset, data);
  }

  async check(offset = 0, length = this.size - offset): Promise<void> {
    for (let done = 0; done < length; done += MiB) {
      const part = Math.min(MiB, length - done);
      this.#compare(offset + done, await this.direct.read(offset + done, part), part);
    }
  }

  async checkBuffered(offset: number, length: number): Promise<void> {
    await using cached = await open(this.path, 'r');
    const { buffer, bytesRead } = await cached.read(Buffer.alloc(length), 0, length, offset);
    this.#compare(offset, buffer.subarray(0, bytesRead), length);
  }

  /** A random place for `length` bytes. */
  place(length: number): number {
    return random((this.size - length) / this.blockSize + 1) * this.blockSize;
  }

  /** What sysfs says of it: `ro`, `queue/fua`. */
  async attribute(name: string): Promise<string> {
    return (await readFile(`/sys/block/${basename(this.path)}/${name}`, 'utf8')).trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.direct[Symbol.asyncDispose]();
  }

  #compare(offset: number, found: Buffer, length: number): void {
    assert.equal(found.length, length, `a short read at ${offset} of ${this.name}`);
    const wanted = this.mirror.subarray(offset, offset + length);
    if (found.equals(wanted)) return;
    const at = found.findIndex((byte, index) => byte !== wanted[index]);
    assert.fail(`${this.name} differs at byte ${offset + at}, ${at} of ${length} read`);
  }
}

const kinds = ['read', 'write', 'flush', 'discard', 'writeZeroes'] as const;
type Kind = (typeof kinds)[number];

const total = (queues: readonly QueueStatus[], kind: Kind, field: 'count' | 'bytes' | 'errors'): number =>
  queues.reduce((sum, queue) => sum + queue[kind][field], 0);

/** What `action` added to the counters of a device, all queues together. */
export async function counted(
  served: RunningSupervisor,
  name: string,
  action: () => Promise<unknown>,
): Promise<Record<Kind, Pick<OperationStatus, 'count' | 'bytes' | 'errors'>>> {
  const { queues: before } = await served.device(name);
  await action();
  const { queues: after } = await served.device(name);
  const grown = (kind: Kind) => {
    const by = (field: 'count' | 'bytes' | 'errors'): number => total(after, kind, field) - total(before, kind, field);
    return { count: by('count'), bytes: by('bytes'), errors: by('errors') };
  };
  return {
    read: grown('read'),
    write: grown('write'),
    flush: grown('flush'),
    discard: grown('discard'),
    writeZeroes: grown('writeZeroes'),
  };
}

/** Makes a file system and finds what was copied to it, the folder `tree`, when it is mounted again. */
export async function testFileSystem(
  path: string,
  { make, check }: { readonly make: readonly [string, ...string[]]; readonly check: readonly [string, ...string[]] },
  tree: string,
): Promise<void> {
  const [maker, ...makeOptions] = make;
  await mkdir('/mnt/fs', { recursive: true });
  await ok(maker, [...makeOptions, path]);
  await ok('mount', [path, '/mnt/fs']);
  await ok('cp', ['-r', tree, '/mnt/fs/tree']);
  await ok('umount', ['/mnt/fs']);
  // Whoever else has the device open keeps its cache.
  await ok('blockdev', ['--flushbufs', path]);
  await testTree(path, check, tree);
}

/** A sound file system has a folder `tree` that is alike to the one here. */
async function testTree(path: string, [checker, ...options]: readonly [string, ...string[]], tree: string) {
  await mkdir('/mnt/fs', { recursive: true });
  await ok(checker, [...options, path]);
  await ok('mount', ['-o', 'ro', path, '/mnt/fs']);
  await ok('diff', ['-r', tree, '/mnt/fs/tree']);
  await ok('umount', ['/mnt/fs']);
}

/** Of a device that cannot be written to. */
export async function testRefusal(
  served: RunningSupervisor,
  { name, path }: { readonly name: string; readonly path: string },
): Promise<void> {
  const refused = await counted(served, name, () =>
    assert.rejects(
      async () => {
        await using direct = await DirectFile.open(path);
        await direct.write(0, fresh(PAGE));
      },
      (error: NodeJS.ErrnoException) => error.code === 'EPERM' || error.code === 'EACCES',
    ),
  );
  assert.equal(refused.write.count, 0);
}

/** Adds a device of each row, one after the other, tests everything of it and removes it. */
export async function testBackends(t: TestContext, rows: readonly Row[], sample: Sample): Promise<void> {
  const served = await RunningSupervisor.start([]);
  for (const { name, backend, settings, expected: unusual } of rows) {
    await t.test(name, async (t) => {
      const expected = { ...usual, ...unusual };
      const device = await served.add({ name, queues: 2, blockSize: expected.blockSize, backend, ...settings });
      await testDevice(t, served, device, expected, sample);
      await served.remove(name);
    });
  }
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);
}

async function testDevice(
  t: TestContext,
  served: RunningSupervisor,
  device: DeviceStatus,
  expected: Expected,
  { tree, image }: Sample,
): Promise<void> {
  const { name } = device;
  const { readOnly, forgets, writeCache, discard, writeZeroes, kills } = expected;
  await using disk = await (readOnly ? Disk.openReadOnly(device, image) : Disk.open(device, forgets));

  await t.test('it announces what it is', () => testAnnouncements(disk, expected));
  if (readOnly) {
    await t.test('its content', () => disk.check());
    await t.test('writes are refused', () => testRefusal(served, disk));
  } else {
    await t.test('requests over the whole device, many at a time', () => testWhole(disk));
  }
  await t.test('requests of 1 block to 1 MiB at any place', () => testLengths(disk, !readOnly));
  // What it was given the page cache does not forget.
  await t.test('through the page cache, at any byte', () => testPageCache(disk, !readOnly && !forgets));
  await t.test('nothing is past the end, and nothing in the middle of a block', () => testEdges(disk, !readOnly));
  if (!readOnly) {
    await t.test('FLUSH and FUA', () => testFlush(served, disk, writeCache));
    if (discard) await t.test('discard leaves what is around it', () => testDiscard(served, disk));
    await t.test('zeros are written, and what is around them is left', () => testZeroes(served, disk, writeZeroes));
  }
  await t.test('queue processes killed under load', async () => {
    if (readOnly || forgets) {
      await survivesKills(served, name, 'read', kills, async () => {
        await disk.check();
        return 1;
      });
    } else {
      const job = { name, path: disk.path, size: String(FIO_BYTES), depth: 32 };
      await survivesKills(served, name, 'write', kills, (pass) => verifiedWrites(job, pass));
      await disk.check(FIO_BYTES);
    }
  });
  if (readOnly) {
    await t.test('its file system', () => testTree(disk.path, ext4.check, tree));
  } else if (!forgets) {
    await t.test('ext4 keeps its data', () => testFileSystem(disk.path, ext4, tree));
  }

  const after = await served.device(name);
  assert.deepEqual([after.state, after.recoveries, after.lastBackendError], ['live', kills, null]);
  for (const kind of kinds) assert.equal(total(after.queues, kind, 'errors'), 0, `errors of ${kind}`);
}

async function testAnnouncements(disk: Disk, expected: Expected): Promise<void> {
  const isPositive = async (name: string): Promise<boolean> => Number(await disk.attribute(name)) > 0;
  assert.deepEqual(
    {
      size: 512 * Number(await disk.attribute('size')),
      blockSize: Number(await disk.attribute('queue/logical_block_size')),
      readOnly: await disk.attribute('ro'),
      writeCache: await disk.attribute('queue/write_cache'),
      fua: await disk.attribute('queue/fua'),
      discard: await isPositive('queue/discard_max_bytes'),
      writeZeroes: await isPositive('queue/write_zeroes_max_bytes'),
    },
    {
      size: expected.size,
      blockSize: expected.blockSize,
      readOnly: expected.readOnly ? '1' : '0',
      writeCache: expected.writeCache ? 'write back' : 'write through',
      fua: expected.writeCache ? '1' : '0',
      discard: expected.discard,
      writeZeroes: expected.writeZeroes,
    },
  );
}

/** Twice over the whole device, the second time with requests that begin and end at odd blocks. */
async function testWhole(disk: Disk): Promise<void> {
  for (const step of [MiB, 25 * PAGE + disk.blockSize]) {
    const offsets = Array.from({ length: Math.ceil(disk.size / step) }, (_, index) => index * step);
    const lengthAt = (offset: number): number => Math.min(step, disk.size - offset);
    await Promise.all(offsets.map((offset) => disk.write(offset, lengthAt(offset))));
    await Promise.all(offsets.map((offset) => disk.check(offset, lengthAt(offset))));
  }
  await disk.check();
}

/** Lengths below, at and above what a request and a tag's buffer hold; places at both ends and in between. */
async function testLengths(disk: Disk, writable: boolean): Promise<void> {
  const { blockSize, size } = disk;
  const lengths = [1, 2, 3, 7].map((blocks) => blocks * blockSize);
  lengths.push(32 * KiB, 64 * KiB + blockSize, 256 * KiB, 256 * KiB + blockSize, MiB - blockSize, MiB);
  for (const length of lengths) {
    for (const offset of [0, blockSize * 7, disk.place(length), size - length]) {
      if (writable) await disk.write(offset, length);
      await disk.check(offset, length);
    }
  }
  if (writable) await disk.check();
}

async function testPageCache(disk: Disk, writable: boolean): Promise<void> {
  const { blockSize, size } = disk;
  for (const length of [4, blockSize - 1, PAGE + 1, 100_003]) {
    for (const offset of [0, 1, random(size - length), size - length]) {
      if (writable) {
        // Alternating, so that each way has to see what the other one wrote.
        await disk.writeBuffered(offset, length);
        await disk.write(disk.place(blockSize), blockSize);
      }
      await disk.checkBuffered(offset, length);
    }
  }
  if (writable) await disk.check();
}

async function testEdges(disk: Disk, writable: boolean): Promise<void> {
  const { direct, blockSize, size } = disk;
  const half = blockSize / 2;
  const misaligned = [
    [half, blockSize],
    [0, half],
    [blockSize, blockSize + half],
  ] as const;
  assert.equal((await direct.read(size, blockSize)).length, 0);
  assert.equal((await direct.read(size + 64 * MiB, blockSize)).length, 0);
  assert.equal((await direct.read(size - blockSize, 2 * blockSize)).length, blockSize);
  for (const [offset, length] of misaligned) await assert.rejects(direct.read(offset, length), { code: 'EINVAL' });
  if (!writable) return;
  await assert.rejects(direct.write(size, fresh(blockSize)), { code: 'ENOSPC' });
  const data = fresh(2 * blockSize);
  assert.equal(await direct.write(size - blockSize, data), blockSize, 'a write over the end');
  disk.wrote(size - blockSize, data.subarray(0, blockSize));
  for (const [offset, length] of misaligned) {
    await assert.rejects(direct.write(offset, fresh(length)), { code: 'EINVAL' });
  }
  await disk.check(0, 4 * blockSize);
  await disk.check(size - 4 * blockSize);
}

/** Without a write cache the kernel keeps both from the backend. */
async function testFlush(served: RunningSupervisor, disk: Disk, writeCache: boolean): Promise<void> {
  const { name, blockSize } = disk;
  const flushes = writeCache ? 1 : 0;
  const flushed = await counted(served, name, async () => {
    await disk.write(0, blockSize);
    await disk.direct.flush();
  });
  assert.deepEqual([flushed.write.count, flushed.flush.count], [1, flushes]);

  await using synchronous = await DirectFile.open(disk.path, constants.O_DSYNC);
  await writeFile('/sys/kernel/tracing/trace', '');
  await writeFile('/sys/kernel/tracing/events/block/block_rq_issue/enable', '1');
  const data = fresh(2 * blockSize);
  const forced = await counted(served, name, () => synchronous.write(blockSize, data));
  await writeFile('/sys/kernel/tracing/events/block/block_rq_issue/enable', '0');
  disk.wrote(blockSize, data);
  // Without FUA the kernel would add a flush of its own to the one that it sends for O_DSYNC.
  assert.deepEqual([forced.write.count, forced.write.bytes, forced.flush.count], [1, 2 * blockSize, flushes]);
  const issued = await readFile('/sys/kernel/tracing/trace', 'utf8');
  if (writeCache) assert.match(issued, / WFS [0-9]+ /, 'no write with FUA was issued');
  await disk.check(0, 16 * blockSize);
}

/** First blocks, blocks in the middle of pages, last blocks; bytes. */
const spansOf = ({ blockSize, size }: Disk) =>
  [
    [0, 3 * blockSize],
    [41 * blockSize, 67 * blockSize],
    [size - 9 * blockSize, 9 * blockSize],
  ] as const;

async function writeAround(disk: Disk, offset: number, length: number): Promise<void> {
  const start = Math.max(0, offset - PAGE);
  await disk.write(start, Math.min(offset + length + PAGE, disk.size) - start);
}

async function testDiscard(served: RunningSupervisor, disk: Disk): Promise<void> {
  for (const [offset, length] of spansOf(disk)) {
    await writeAround(disk, offset, length);
    const discarded = await counted(served, disk.name, () =>
      ok('blkdiscard', ['-o', String(offset), '-l', String(length), disk.path]),
    );
    assert.equal(discarded.discard.bytes, length);
    const left = await disk.direct.read(offset, length);
    for (let at = offset; at < offset + length;) {
      const end = Math.min((Math.floor(at / PAGE) + 1) * PAGE, offset + length);
      const part = left.subarray(at - offset, end - offset);
      // Of a page that is not discarded as a whole the contents may stay.
      const kept = end - at < PAGE && part.equals(disk.mirror.subarray(at, end));
      assert.ok(kept || isZero(part), `${disk.name} after a discard, at ${at}`);
      part.copy(disk.mirror, at);
      at = end;
    }
    await disk.check();
  }
}

/** The kernel writes the zeros itself where the backend does not, but punches no hole then. */
async function testZeroes(served: RunningSupervisor, disk: Disk, byBackend: boolean): Promise<void> {
  const commands = [
    ['blkdiscard', '-z'],
    ['fallocate', '-z'],
    byBackend ? ['fallocate', '-p'] : ['blkdiscard', '-z'],
  ] as const;
  for (const [index, [offset, length]] of spansOf(disk).entries()) {
    const [command, option] = commands[index] ?? assert.fail();
    await writeAround(disk, offset, length);
    const { writeZeroes, write } = await counted(served, disk.name, () =>
      ok(command, [option, '-o', String(offset), '-l', String(length), disk.path]),
    );
    assert.deepEqual([writeZeroes.bytes, write.bytes], byBackend ? [length, 0] : [0, length], `${command} ${option}`);
    disk.mirror.fill(0, offset, offset + length);
    await disk.check();
  }
}

/** Kills queue processes in turn while `pass` uses the device, again and again; each pass gives what it did, above 0. */
async function survivesKills(
  served: RunningSupervisor,
  name: string,
  kind: 'read' | 'write',
  kills: number,
  pass: (index: number) => Promise<number>,
): Promise<void> {
  const load = new Load(pass);
  for (let kill = 1; kill <= kills; kill++) {
    const { queues } = await served.untilLive(name, kill - 1);
    await waitFor(
      'the load going on',
      async () => total((await served.device(name)).queues, kind, 'count') > total(queues, kind, 'count'),
    );
    process.kill(queues[kill % queues.length]?.pid ?? assert.fail('no process'), 'SIGKILL');
    await Promise.race([served.untilLive(name, kill, RECOVERY_TIMEOUT_MS), load.done]);
    // Generations that die young are started ever more slowly, which is not what this is about.
    assert.equal((await served.api('POST', `/v1/devices/${name}/recover`)).status, 200);
  }
  assert.ok((await load.stop()) > 0);
}
