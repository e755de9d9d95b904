// guest: --cpus 4
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { open, readFile, stat, statfs, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { test } from 'node:test';
import { DirectFile } from './direct-file.js';
import { Served, assertNothingLeft, ok } from './harness.js';
import { random, seed } from './random.js';
import type { DeviceStatus, OperationStatus } from '../../src/supervisor/status.js';

const KiB = 2 ** 10;
const MiB = 2 ** 20;
const PAGE = 4096;
const CPUS = 4;
/** Whose memory is taken away; not where blkdiscard looks for a file system. */
const LOST = 3 * MiB + 5 * PAGE;

/** Sizes that are no multiple of a page where the blocks allow it, so that first and last block are seldom alike. */
const disks = [
  { name: 'two-copy', queues: 2, depth: 256, blockSize: 512, dataPath: 'copy', size: 8 * MiB + 512 },
  { name: 'two-user', queues: 2, depth: 1, blockSize: 512, dataPath: 'user-copy', size: 8 * MiB + 512 },
  { name: 'four-copy', queues: 4, depth: 1, blockSize: 4096, dataPath: 'copy', size: 8 * MiB + PAGE },
  { name: 'four-user', queues: 4, depth: 256, blockSize: 4096, dataPath: 'user-copy', size: 8 * MiB + PAGE },
] as const;

const paths = ['copy', 'user-copy'] as const;

const configurations = [
  ...disks.map(({ size, ...rest }) => ({ ...rest, backend: { type: 'ram', size } })),
  ...paths.flatMap((dataPath) => [
    { name: `null-${dataPath}`, depth: 8, dataPath, backend: { type: 'null', size: '1TiB' } },
    { name: `sparse-${dataPath}`, depth: 8, blockSize: 512, dataPath, backend: { type: 'ram', size: '64MiB' } },
  ]),
  { name: 'read-only', readOnly: true, backend: { type: 'ram', size: '1MiB' } },
];

/** Different at every place of it, so that data of another place, queue or time is noticed. */
const noise = randomBytes(4 * MiB);

/** `length` bytes, at least 4, that no two calls give alike. */
function fresh(length: number): Buffer {
  const start = random(noise.length - length);
  const data = Buffer.from(noise.subarray(start, start + length));
  data.writeUInt32LE(random(2 ** 32), 0);
  return data;
}

const pathOf = ({ name, path }: DeviceStatus): string => path ?? assert.fail(`${name} has no path`);

/** A device and what has to be on it. */
class Disk {
  readonly name: string;
  readonly blockSize: number;
  readonly size: number;
  readonly path: string;
  readonly direct: DirectFile;
  readonly mirror: Buffer;

  private constructor(status: DeviceStatus, direct: DirectFile) {
    this.name = status.name;
    this.blockSize = status.blockSize;
    this.size = status.size;
    this.path = pathOf(status);
    this.direct = direct;
    this.mirror = Buffer.alloc(status.size);
  }

  static async open(status: DeviceStatus): Promise<Disk> {
    return new Disk(status, await DirectFile.open(pathOf(status)));
  }

  async write(offset: number, length: number): Promise<void> {
    const data = fresh(length);
    assert.equal(await this.direct.write(offset, data), length);
    data.copy(this.mirror, offset);
  }

  /** Through the page cache, at any offset. */
  async writeBuffered(offset: number, length: number): Promise<void> {
    const data = fresh(length);
    await using cached = await open(this.path, 'r+');
    assert.equal((await cached.write(data, 0, length, offset)).bytesWritten, length);
    await cached.datasync();
    data.copy(this.mirror, offset);
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

  #compare(offset: number, found: Buffer, length: number): void {
    assert.equal(found.length, length, `a short read at ${String(offset)} of ${this.name}`);
    const wanted = this.mirror.subarray(offset, offset + length);
    if (found.equals(wanted)) return;
    const at = found.findIndex((byte, index) => byte !== wanted[index]);
    assert.fail(`${this.name} differs at byte ${String(offset + at)}, ${String(at)} of ${String(length)} read`);
  }
}

/** Makes every thread of this process, those that do the I/O among them, run on these CPUs only. */
const pinTo = (cpus: number | string): Promise<string> => ok('taskset', ['-apc', String(cpus), String(process.pid)]);

/** CPU to queue, as the kernel says it. */
async function queueOfCpu(disk: Disk, queues: number): Promise<number[]> {
  const map: number[] = [];
  for (let queue = 0; queue < queues; queue++) {
    const list = await readFile(`/sys/block/${disk.path.slice('/dev/'.length)}/mq/${String(queue)}/cpu_list`, 'utf8');
    for (const cpu of list.split(',')) map[Number(cpu)] = queue;
  }
  return map;
}

type Kind = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';

/** What `action` added to the counters of a device, all queues together. */
async function counted(
  served: Served,
  name: string,
  action: () => Promise<unknown>,
): Promise<Record<Kind, Pick<OperationStatus, 'count' | 'bytes' | 'errors'>>> {
  const sum = async (): Promise<(kind: Kind, field: 'count' | 'bytes' | 'errors') => number> => {
    const { queues } = await served.device(name);
    return (kind, field) => queues.reduce((total, queue) => total + queue[kind][field], 0);
  };
  const before = await sum();
  await action();
  const after = await sum();
  const grown = (kind: Kind) => ({
    count: after(kind, 'count') - before(kind, 'count'),
    bytes: after(kind, 'bytes') - before(kind, 'bytes'),
    errors: after(kind, 'errors') - before(kind, 'errors'),
  });
  return {
    read: grown('read'),
    write: grown('write'),
    flush: grown('flush'),
    discard: grown('discard'),
    writeZeroes: grown('writeZeroes'),
  };
}

const memoryOf = async (name: string): Promise<number> =>
  (await stat(`/dev/shm/ublk-supervisor/${name}.ram`)).blocks * 512;

const isZero = (data: Buffer): boolean => data.equals(Buffer.alloc(data.length));

test('data is where it was written', { timeout: 560_000 }, async (t) => {
  assert.equal(availableParallelism(), CPUS, 'run this in a guest with four CPUs');
  t.diagnostic(`seed ${String(seed)}`);
  const served = await Served.start(configurations);
  const opened = await Promise.all(disks.map(async ({ name }) => Disk.open(await served.device(name))));

  await t.test('the devices are what was configured', async () => {
    for (const { name, queues, depth, dataPath, blockSize, size } of disks) {
      const status = await served.device(name);
      assert.equal(status.queues.length, queues);
      assert.deepEqual(new Set(status.queues.map((queue) => queue.depth)), new Set([depth]));
      assert.deepEqual([status.dataPath, status.blockSize, status.size], [dataPath, blockSize, size]);
      assert.equal((await ok('blockdev', ['--getsize64', pathOf(status)])).trim(), String(size));
      assert.equal((await ok('blockdev', ['--getss', pathOf(status)])).trim(), String(blockSize));
    }
  });

  await t.test('what each CPU writes, through its own queue, is what every other CPU reads', async () => {
    const cells = 8;
    const cell = 64 * KiB;
    const before = new Map((await served.status()).devices.map((device) => [device.name, device.queues]));
    for (let cpu = 0; cpu < CPUS; cpu++) {
      await pinTo(cpu);
      for (const disk of opened) {
        const first = cpu * cells;
        await Promise.all(Array.from({ length: cells }, (_, index) => disk.write((first + index) * cell, cell)));
      }
    }
    for (let cpu = 0; cpu < CPUS; cpu++) {
      await pinTo(cpu);
      for (const disk of opened) {
        await Promise.all(Array.from({ length: CPUS * cells }, (_, index) => disk.check(index * cell, cell)));
      }
    }
    await pinTo(`0-${String(CPUS - 1)}`);
    for (const disk of opened) {
      const { queues } = await served.device(disk.name);
      const map = await queueOfCpu(disk, queues.length);
      for (const { index, write, read } of queues) {
        const cpus = map.filter((queue) => queue === index).length;
        const earlier = before.get(disk.name)?.[index];
        assert.ok(cpus > 0 && earlier);
        assert.equal(
          write.count - earlier.write.count,
          cpus * cells,
          `writes of queue ${String(index)} of ${disk.name}`,
        );
        assert.equal(read.count - earlier.read.count, cpus * cells * CPUS, `reads of queue ${String(index)}`);
      }
    }
  });

  for (const disk of opened) {
    const { name, blockSize, size } = disk;
    await t.test(`requests of 1 block to 1 MiB at any place of ${name}`, async () => {
      const lengths = [1, 2, 7].map((blocks) => blocks * blockSize);
      lengths.push(32 * KiB, 64 * KiB + blockSize, 256 * KiB, 256 * KiB + blockSize, MiB - blockSize, MiB);
      for (const length of lengths) {
        for (const offset of [0, blockSize * 7, disk.place(length), size - length]) {
          await disk.write(offset, length);
          await disk.check(offset, length);
        }
      }
      await disk.check();
    });

    await t.test(`reads and writes through the page cache of ${name}, at any byte`, async () => {
      for (const length of [4, blockSize - 1, PAGE + 1, 100_003]) {
        for (const offset of [0, 1, random(size - length), size - length]) {
          // Alternating, so that each way has to see what the other one wrote.
          await disk.writeBuffered(offset, length);
          await disk.write(disk.place(blockSize), blockSize);
          await disk.checkBuffered(offset, length);
        }
      }
      await disk.check();
    });

    await t.test(`nothing is read or written past the end of ${name}`, async () => {
      assert.equal((await disk.direct.read(size, blockSize)).length, 0);
      assert.equal((await disk.direct.read(size + 64 * MiB, blockSize)).length, 0);
      assert.equal((await disk.direct.read(size - blockSize, 2 * blockSize)).length, blockSize);
      await assert.rejects(disk.direct.write(size, fresh(blockSize)), { code: 'ENOSPC' });
      const data = fresh(2 * blockSize);
      assert.equal(await disk.direct.write(size - blockSize, data), blockSize, 'a write over the end');
      data.copy(disk.mirror, size - blockSize, 0, blockSize);
      await disk.check(size - 4 * blockSize);
    });

    await t.test(`FLUSH and FUA reach the backend of ${name}`, async () => {
      const queue = `/sys/block/${disk.path.slice('/dev/'.length)}/queue`;
      assert.equal((await readFile(`${queue}/write_cache`, 'utf8')).trim(), 'write back');
      assert.equal((await readFile(`${queue}/fua`, 'utf8')).trim(), '1');
      const flushed = await counted(served, name, async () => {
        await disk.write(0, blockSize);
        await disk.direct.flush();
      });
      assert.deepEqual([flushed.write.count, flushed.flush.count], [1, 1]);

      await using synchronous = await DirectFile.open(disk.path, constants.O_DSYNC);
      await writeFile('/sys/kernel/tracing/trace', '');
      await writeFile('/sys/kernel/tracing/events/block/block_rq_issue/enable', '1');
      const data = fresh(2 * blockSize);
      const forced = await counted(served, name, () => synchronous.write(blockSize, data));
      await writeFile('/sys/kernel/tracing/events/block/block_rq_issue/enable', '0');
      data.copy(disk.mirror, blockSize);
      // Without FUA the kernel would add a flush of its own to the one that it sends for O_DSYNC.
      assert.deepEqual([forced.write.count, forced.write.bytes, forced.flush.count], [1, 2 * blockSize, 1]);
      assert.match(await readFile('/sys/kernel/tracing/trace', 'utf8'), / WFS [0-9]+ /, 'no write with FUA was issued');
      await disk.check(0, 16 * blockSize);
    });

    await t.test(`discard and write zeroes of ${name} leave what is around them`, async () => {
      const surround = async (offset: number, length: number): Promise<void> => {
        const start = Math.max(0, offset - PAGE);
        await disk.write(start, Math.min(offset + length + PAGE, size) - start);
      };
      for (const [start, blocks, file, option] of [
        [0, 3, 'blkdiscard', '-z'],
        [41, 67, 'fallocate', '-z'],
        [size / blockSize - 9, 9, 'fallocate', '-p'],
      ] as const) {
        const offset = start * blockSize;
        const length = blocks * blockSize;
        const span = ['-o', String(offset), '-l', String(length)];

        await surround(offset, length);
        const discarded = await counted(served, name, () => ok('blkdiscard', [...span, disk.path]));
        assert.equal(discarded.discard.bytes, length);
        const left = await disk.direct.read(offset, length);
        for (let at = offset; at < offset + length;) {
          const end = Math.min((Math.floor(at / PAGE) + 1) * PAGE, offset + length);
          const part = left.subarray(at - offset, end - offset);
          // Of a page that is not discarded as a whole the contents may stay.
          const kept = end - at < PAGE && part.equals(disk.mirror.subarray(at, end));
          assert.ok(kept || isZero(part), `${name} after a discard, at ${String(at)}`);
          part.copy(disk.mirror, at);
          at = end;
        }
        await disk.check();

        await surround(offset, length);
        const zeroed = await counted(served, name, () => ok(file, [option, ...span, disk.path]));
        assert.deepEqual([zeroed.writeZeroes.bytes, zeroed.write.count], [length, 0], `${file} ${option}`);
        disk.mirror.fill(0, offset, offset + length);
        await disk.check();
      }
    });
  }

  await t.test('fio verifies what it wrote, at depths 1 and 256', async () => {
    for (const { name, queues, depth } of disks) {
      const { path } = await served.device(name);
      const job = [
        '--ioengine=io_uring',
        '--direct=1',
        '--rw=randwrite',
        '--bs=4k',
        '--size=4M',
        '--offset_increment=4M',
      ];
      const check = ['--verify=crc32c', '--verify_fatal=1', '--randrepeat=0', `--randseed=${String(seed)}`];
      const load = [`--iodepth=${String(depth)}`, '--numjobs=2', '--thread', '--group_reporting'];
      const { write, read } = await counted(served, name, () =>
        ok('fio', [`--name=${name}`, `--filename=${String(path)}`, ...job, ...check, ...load]),
      );
      assert.deepEqual([write.bytes, read.bytes, queues], [8 * MiB, 8 * MiB, queues]);
    }
  });

  await t.test('the null device reads zeros whatever was written', async () => {
    for (const dataPath of paths) {
      await using direct = await DirectFile.open(pathOf(await served.device(`null-${dataPath}`)));
      for (const offset of [0, 2 ** 40 - MiB]) {
        const io = await counted(served, `null-${dataPath}`, async () => {
          assert.equal(await direct.write(offset, fresh(MiB)), MiB);
          assert.ok(isZero(await direct.read(offset, MiB)));
        });
        assert.deepEqual([io.write.bytes, io.read.bytes], [MiB, MiB]);
      }
    }
  });

  await t.test('a read-only device refuses writes', async () => {
    const path = pathOf(await served.device('read-only'));
    assert.equal((await ok('blockdev', ['--getro', path])).trim(), '1');
    const refused = await counted(served, 'read-only', () =>
      assert.rejects(
        async () => {
          await using direct = await DirectFile.open(path);
          await direct.write(0, fresh(PAGE));
        },
        (error: NodeJS.ErrnoException) => error.code === 'EPERM' || error.code === 'EACCES',
      ),
    );
    assert.equal(refused.write.count, 0);
    assert.ok(isZero(await readFile(path)));
  });

  for (const dataPath of paths) {
    const name = `sparse-${dataPath}`;
    await t.test(`a RAM disk takes memory as it is written, ${dataPath}`, async () => {
      const path = pathOf(await served.device(name));
      await using direct = await DirectFile.open(path);
      const empty = await memoryOf(name);
      assert.ok(empty <= 64 * KiB, `a fresh disk has ${String(empty)} bytes`);
      const { read } = await counted(served, name, async () => {
        for (let offset = 0; offset < 64 * MiB; offset += MiB) assert.ok(isZero(await direct.read(offset, MiB)));
      });
      assert.equal(read.bytes, 64 * MiB);
      assert.equal(await memoryOf(name), empty, 'reading took memory');
      for (let offset = 0; offset < 8 * MiB; offset += MiB) await direct.write(2 * offset, fresh(MiB));
      assert.equal(await memoryOf(name), empty + 8 * MiB);
      await ok('blkdiscard', ['-o', '0', '-l', String(15 * MiB - 512), path]);
      assert.equal(await memoryOf(name), empty + PAGE, 'discard gave back something else');
      await ok('blkdiscard', ['-z', path]);
      assert.equal(await memoryOf(name), empty, 'write zeroes gave nothing back');
    });
  }

  for (const dataPath of paths) {
    const name = `sparse-${dataPath}`;
    await t.test(`no memory left is ENOSPC for the writer and nothing else, ${dataPath}`, async () => {
      const before = await served.device(name);
      await using direct = await DirectFile.open(pathOf(before));
      const { bsize, blocks, bfree } = await statfs('/dev/shm');
      await ok('mount', ['-o', `remount,size=${String((blocks - bfree) * bsize + 4 * MiB)}`, '/dev/shm']);
      const step = 64 * KiB;
      const written: Buffer[] = [];
      const fill = async (): Promise<void> => {
        for (;;) {
          const data = fresh(step);
          await direct.write(written.length * step, data);
          written.push(data);
        }
      };
      await assert.rejects(fill(), { code: 'ENOSPC' });
      const full = written.length;
      assert.equal(full, (4 * MiB) / step, 'not all of the memory could be used');
      // The second attempt, and one that begins with memory that is there.
      await assert.rejects(direct.write(full * step, fresh(step)), { code: 'ENOSPC' });
      await assert.rejects(direct.write((full - 1) * step, fresh(MiB)), { code: 'ENOSPC' });
      await assert.rejects(direct.write(48 * MiB, fresh(512)), { code: 'ENOSPC' });
      await ok('blkdiscard', ['-z', '-o', String(48 * MiB + 512), '-l', '512', pathOf(before)]);
      for (const [index, data] of written.slice(0, full - 1).entries()) {
        assert.ok(
          data.equals(await direct.read(index * step, step)),
          `lost what was written at ${String(index * step)}`,
        );
      }
      assert.ok(isZero(await direct.read(48 * MiB, MiB)), 'what was never written is not zero');
      assert.equal((await direct.read(full * step, MiB)).length, MiB, 'a read of what could not be written');
      if (dataPath === 'user-copy') {
        // Memory that goes behind the backend's back is noticed by the kernel, in the middle of copying.
        const file = `/dev/shm/ublk-supervisor/${name}.ram`;
        await ok('fallocate', ['-p', '-o', String(LOST), '-l', String(PAGE), file]);
        await direct.write(50 * MiB, fresh(PAGE));
        await assert.rejects(direct.write(LOST, fresh(PAGE)), { code: 'ENOSPC' });
        await assert.rejects(direct.read(LOST, PAGE), { code: 'EIO' });
      }
      // Writing to memory that is there needs none.
      await direct.write(0, fresh(step));
      await ok('blkdiscard', ['-o', '0', '-l', String(4 * MiB), pathOf(before)]);
      await direct.write(32 * MiB, fresh(MiB));
      const after = await served.device(name);
      assert.equal(after.recoveries, 0);
      assert.deepEqual(
        after.queues.map(({ pid }) => pid),
        before.queues.map(({ pid }) => pid),
      );
      assert.ok(after.queues.some(({ write }) => write.errors > 0));
      await ok('mount', ['-o', 'remount,size=50%', '/dev/shm']);
    });
  }

  for (const disk of opened) await disk.direct[Symbol.asyncDispose]();
  for (const { name, recoveries, lastExit } of (await served.status()).devices) {
    assert.deepEqual([recoveries, lastExit], [0, null], name);
  }
  assert.equal(await served.terminate(), 0);
  // Of the read whose memory was taken away.
  await assertNothingLeft(
    served.runtimeDir,
    new RegExp(` I/O error, dev ublkb[0-9]+, sector ${String(LOST / 512)} op 0x0:\\(READ\\)`),
  );
});
