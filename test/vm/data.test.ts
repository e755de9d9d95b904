// guest: --cpus 4
import assert from 'node:assert/strict';
import { readFile, stat, statfs } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { test } from 'node:test';
import { Disk, counted, fresh, isZero, pathOf, testRefusal } from './device-suite.js';
import { DATA_OFFSET } from '../../backends/ram/ram-file.js';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { RunningSupervisor, assertNothingLeft, ok } from './harness.js';
import { ramFile } from './ram-data.js';
import { seed } from './random.js';

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

/** Makes every thread of this process, those that do the I/O among them, run on these CPUs only. */
const pinTo = (cpus: number | string): Promise<string> => ok('taskset', ['-apc', String(cpus), String(process.pid)]);

/** CPU to queue, as the kernel says it. */
async function queueOfCpu(disk: Disk, queues: number): Promise<number[]> {
  const map: number[] = [];
  for (let queue = 0; queue < queues; queue++) {
    const list = await disk.attribute(`mq/${queue}/cpu_list`);
    for (const cpu of list.split(',')) map[Number(cpu)] = queue;
  }
  return map;
}

const memoryOf = async (name: string): Promise<number> => (await stat(ramFile(name))).blocks * 512;

test('data is where it was written', { timeout: 1_100_000 }, async (t) => {
  assert.equal(availableParallelism(), CPUS, 'run this in a guest with four CPUs');
  t.diagnostic(`seed ${seed}`);
  const served = await RunningSupervisor.start(configurations);
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
    await pinTo(`0-${CPUS - 1}`);
    for (const disk of opened) {
      const { queues } = await served.device(disk.name);
      const map = await queueOfCpu(disk, queues.length);
      for (const { index, write, read } of queues) {
        const cpus = map.filter((queue) => queue === index).length;
        const earlier = before.get(disk.name)?.[index];
        assert.ok(cpus > 0 && earlier);
        assert.equal(write.count - earlier.write.count, cpus * cells, `writes of queue ${index} of ${disk.name}`);
        assert.equal(read.count - earlier.read.count, cpus * cells * CPUS, `reads of queue ${index}`);
      }
    }
  });

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
      const check = ['--verify=crc32c', '--verify_fatal=1', '--randrepeat=0', `--randseed=${seed}`];
      const load = [`--iodepth=${depth}`, '--numjobs=2', '--thread', '--group_reporting'];
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
    await testRefusal(served, { name: 'read-only', path });
    assert.ok(isZero(await readFile(path)));
  });

  for (const dataPath of paths) {
    const name = `sparse-${dataPath}`;
    await t.test(`a RAM disk takes memory as it is written, ${dataPath}`, async () => {
      const path = pathOf(await served.device(name));
      await using direct = await DirectFile.open(path);
      const empty = await memoryOf(name);
      assert.ok(empty <= 64 * KiB, `a fresh disk has ${empty} bytes`);
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
      await ok('mount', ['-o', `remount,size=${(blocks - bfree) * bsize + 4 * MiB}`, '/dev/shm']);
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
        assert.ok(data.equals(await direct.read(index * step, step)), `lost what was written at ${index * step}`);
      }
      assert.ok(isZero(await direct.read(48 * MiB, MiB)), 'what was never written is not zero');
      assert.equal((await direct.read(full * step, MiB)).length, MiB, 'a read of what could not be written');
      if (dataPath === 'user-copy') {
        // Memory that goes behind the backend's back is noticed by the kernel, in the middle of copying.
        await ok('fallocate', ['-p', '-o', String(DATA_OFFSET + LOST), '-l', String(PAGE), ramFile(name)]);
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

  for (const disk of opened) await disk[Symbol.asyncDispose]();
  for (const { name, recoveries, lastExit } of (await served.status()).devices) {
    assert.deepEqual([recoveries, lastExit], [0, null], name);
  }
  assert.equal(await served.terminate(), 0);
  assert.doesNotMatch(served.log, /still open/, 'the claims that a stop takes kept the ids of its devices');
  // Of the read whose memory was taken away.
  await assertNothingLeft(
    served.runtimeDir,
    new RegExp(` I/O error, dev ublkb[0-9]+, sector ${LOST / 512} op 0x0:\\(READ\\)`),
  );
});
