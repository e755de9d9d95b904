// kernels: newest
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { constants, readFileSync, readdirSync, readlinkSync, realpathSync } from 'node:fs';
import { open, readFile, rename, stat, truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/api/status.js';
import { isZero, pathOf } from './device-suite.js';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { RunningSupervisor, assertNothingLeft, isLinux, ok, processesNamed, shell, waitFor } from './harness.js';

/** Files and block devices as stores: on tmpfs, on ext4, on a loop device, on every data path that the kernel has. */

const MiB = 2 ** 20;
const PAGE = 4096;
const SIZE = 8 * MiB + PAGE;

const dataPaths = isLinux(6, 16) ? (['zero-copy', 'copy'] as const) : (['copy'] as const);

interface StoreCase {
  readonly name: string;
  readonly dataPath: string;
  readonly path: string;
  readonly settings: object;
  readonly direct: boolean;
}

const cases: readonly StoreCase[] = dataPaths.flatMap((dataPath) => [
  { name: `tmpfs-${dataPath}`, dataPath, path: `/mnt/tmpfs/${dataPath}`, settings: { size: SIZE }, direct: false },
  {
    name: `direct-${dataPath}`,
    dataPath,
    path: `/mnt/ext4/direct-${dataPath}`,
    settings: { size: SIZE },
    direct: true,
  },
  {
    name: `buffered-${dataPath}`,
    dataPath,
    path: `/mnt/ext4/buffered-${dataPath}`,
    settings: { size: SIZE, direct: false, preallocate: true },
    direct: false,
  },
  { name: `block-${dataPath}`, dataPath, path: `/dev/loop-${dataPath}`, settings: {}, direct: true },
]);

const pidsOf = (device: DeviceStatus): number[] => device.queues.map(({ pid }) => pid ?? assert.fail('no process'));

async function readAll(file: DirectFile): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let offset = 0; offset < SIZE; offset += MiB) parts.push(await file.read(offset, Math.min(MiB, SIZE - offset)));
  return Buffer.concat(parts);
}

/** What is in a store as others see it, past the device. */
const storeContent = async (path: string): Promise<Buffer> => {
  await ok('sync', [path]);
  return readFile(path);
};

test('files and block devices as stores', { timeout: 1_100_000 }, async (t) => {
  await shell(`
    modprobe loop
    mkdir -p /mnt/tmpfs /mnt/ext4 /mnt/open
    mount -t tmpfs -o size=400M tmpfs /mnt/tmpfs
    truncate -s 160M /mnt/tmpfs/ext4.img
    mkfs.ext4 -q /mnt/tmpfs/ext4.img
    mount -o loop /mnt/tmpfs/ext4.img /mnt/ext4
    chmod 1777 /mnt/open
    for path in ${dataPaths.join(' ')}; do
      truncate -s ${SIZE} /mnt/tmpfs/block-$path
      loop=$(losetup --find --show /mnt/tmpfs/block-$path)
      ln -s $loop /dev/loop-$path
    done
  `);
  const served = await RunningSupervisor.start(
    cases.map(({ name, dataPath, path, settings }) => ({
      name,
      queues: 2,
      dataPath,
      backend: { type: 'file', path, ...settings },
    })),
  );

  for (const { name, path, direct } of cases) {
    await t.test(`${name}: data is where it was written`, async () => {
      const device = await served.device(name);
      await using file = await DirectFile.open(pathOf(device), constants.O_DSYNC);
      assert.ok(isZero(await readAll(file)));
      const mirror = randomBytes(SIZE);
      const at = async (offset: number, length: number): Promise<void> => {
        assert.equal(await file.write(offset, mirror.subarray(offset, offset + length)), length);
      };
      for (let offset = 0; offset < SIZE; offset += MiB) await at(offset, Math.min(MiB, SIZE - offset));
      assert.ok((await readAll(file)).equals(mirror), 'read back');
      await file.flush();
      assert.ok((await storeContent(path)).equals(mirror), 'what the store has');

      const held = (await stat(path)).blocks;
      await ok('blkdiscard', ['-o', String(MiB), '-l', String(4 * MiB), pathOf(device)]);
      assert.ok((await stat(path)).blocks <= held - (path.startsWith('/dev') ? 0 : 2 * MiB) / 512, 'nothing was freed');
      await ok('blkdiscard', ['-z', pathOf(device)]);
      assert.ok(isZero(await readAll(file)));

      const after = await served.device(name);
      const errors = after.queues.flatMap((queue) => [
        queue.read,
        queue.write,
        queue.flush,
        queue.writeZeroes,
        queue.discard,
      ]);
      assert.deepEqual(
        errors.map((operation) => operation.errors),
        errors.map(() => 0),
      );
      assert.ok(after.queues.some(({ flush }) => flush.count > 0));
      assert.equal(
        (openFlags(after.queues[0]?.pid ?? assert.fail('no process'), path) & constants.O_DIRECT) !== 0,
        direct,
        'O_DIRECT',
      );
    });
  }

  await t.test('worker threads of a queue process may be asked to free memory, too', async () => {
    const PF_MEMALLOC_NOIO = 0x80000;
    const tasks = processesNamed('ublk/').flatMap((pid) =>
      readdirSync(`/proc/${pid}/task`).map((task) => `/proc/${pid}/task/${task}/stat`),
    );
    const threads = tasks.map((path) => readFileSync(path, 'utf8')).map((line) => /\((.*)\) (.*)/.exec(line) ?? []);
    assert.ok(threads.some(([, name]) => name?.startsWith('iou-wrk')));
    for (const [, name, rest] of threads) assert.ok((Number(rest?.split(' ')[6]) & PF_MEMALLOC_NOIO) !== 0, name);
  });

  await t.test('what cannot be a store is refused in one line', async () => {
    await shell('truncate -s 8192 /mnt/tmpfs/small; mkfifo /mnt/open/fifo; ln -s /mnt/ext4/direct-copy /mnt/open/link');
    const [first] = cases;
    assert.ok(first);
    const ublk = pathOf(await served.device(first.name));
    const mounted = (await ok('findmnt', ['-n', '-o', 'SOURCE', '/mnt/ext4'])).trim();
    for (const [path, message, settings] of [
      ['/mnt/ext4', /it is a directory/, {}],
      ['/mnt/open/fifo', /it is a FIFO/, {}],
      ['/dev/null', /it is a character device/, {}],
      [ublk, /it is a ublk device/, {}],
      [mounted, /it is mounted or in use \(EBUSY\)/, {}],
      ['/mnt/open/missing', /there is no such file; give a size/, {}],
      ['/mnt/open/missing/too', /\(ENOENT\)/, { size: SIZE }],
      ['/mnt/open/link', /others could have made the symbolic link/, {}],
      [first.path, /another process or device has it locked/, {}],
      ['/mnt/tmpfs/ext4.img', /it is attached to \/dev\/loop[0-9]+; detach it/, {}],
      ['/mnt/tmpfs/small', /it has 8192 bytes, not the 4096 configured/, { size: 4096 }],
      ['/mnt/tmpfs/full', /no space left on device \(ENOSPC\)/, { size: '1GiB', preallocate: true }],
    ] as const) {
      const backend = { type: 'file', path, ...settings };
      const { status, body } = await served.api('POST', '/v1/devices', { name: 'refused', backend });
      assert.ok(status >= 400, path);
      assert.match(JSON.stringify(body), message);
      assert.ok(!JSON.stringify(body).includes('\\n'), path);
    }
    await assert.rejects(stat('/mnt/tmpfs/full'), { code: 'ENOENT' });
  });

  await t.test('a store may be as large as any device, and no larger', async () => {
    for (const size of [2 ** 44, 2 ** 52]) {
      await shell(`truncate -s ${size} /mnt/tmpfs/large`);
      const device = await served.add({ name: 'large', backend: { type: 'file', path: '/mnt/tmpfs/large' } });
      assert.equal(device.size, size);
      await shell(`for block in 0 ${size / 8192} ${size / 4096 - 1}; do
          yes $block | dd of=${pathOf(device)} bs=4096 seek=$block count=1 iflag=fullblock oflag=direct status=none
          [ "$(dd if=/mnt/tmpfs/large bs=4096 skip=$block count=1 status=none | head -n1)" = $block ]
        done`);
      await served.remove('large');
      await shell('rm /mnt/tmpfs/large');
    }
    await shell('truncate -s 1E /mnt/tmpfs/large');
    const refused = await served.command('add', 'file', 'path=/mnt/tmpfs/large', '--name', 'large');
    assert.match(refused.stderr, /it has 1024P, more than the 4P of the largest device/);
    await shell('rm /mnt/tmpfs/large');
  });

  await t.test('a store of larger blocks is discarded and zeroed to the byte', async () => {
    await shell(`truncate -s ${MiB} /mnt/tmpfs/coarse`);
    const loop = (await ok('losetup', ['--show', '--sector-size', '4096', '-f', '/mnt/tmpfs/coarse'])).trim();
    const device = await served.add({ name: 'fine', blockSize: 512, backend: { type: 'file', path: loop } });
    {
      await using file = await DirectFile.open(pathOf(device));
      const data = randomBytes(MiB);
      await file.write(0, data);
      const at = (offset: number, length: number): string[] => ['-o', String(offset), '-l', String(length)];
      for (const range of [at(512, 1024), at(7 * 512, 4 * PAGE)]) await ok('blkdiscard', [...range, pathOf(device)]);
      // The three blocks that lie wholly in the second range may be gone, and nothing else.
      const kept = await file.read(0, MiB);
      data.copy(kept, PAGE, PAGE, 4 * PAGE);
      assert.ok(kept.equals(data));
      await file.write(0, data);
      for (const range of [at(5 * 512, 1024), at(9 * PAGE + 512, 3 * PAGE)]) {
        await ok('blkdiscard', ['-z', ...range, pathOf(device)]);
      }
      data.fill(0, 5 * 512, 7 * 512).fill(0, 9 * PAGE + 512, 12 * PAGE + 512);
      assert.ok((await file.read(0, MiB)).equals(data));
    }
    await served.remove('fine');
    await ok('losetup', ['-d', loop]);
  });

  await t.test('direct I/O where the file system does not say how', async () => {
    await shell(`
      truncate -s 120M /mnt/tmpfs/btrfs.img; mkfs.btrfs -q /mnt/tmpfs/btrfs.img
      mkdir /mnt/btrfs; mount -o loop /mnt/tmpfs/btrfs.img /mnt/btrfs`);
    const path = '/mnt/btrfs/disk';
    const device = await served.add({ name: 'btrfs', backend: { type: 'file', path, size: SIZE, direct: true } });
    assert.ok((openFlags(pidsOf(device)[0] ?? assert.fail(), path) & constants.O_DIRECT) !== 0);
    {
      await using file = await DirectFile.open(pathOf(device));
      const data = randomBytes(MiB);
      await file.write(PAGE, data);
      assert.ok((await file.read(PAGE, MiB)).equals(data));
    }
    await served.remove('btrfs');
    await shell('umount /mnt/btrfs');
  });

  await t.test('read-only and synchronous stores', async () => {
    await writeFile('/mnt/ext4/image', randomBytes(MiB));
    const path = pathOf(
      await served.add({ name: 'image', backend: { type: 'file', path: '/mnt/ext4/image', readOnly: true } }),
    );
    assert.equal((await ok('blockdev', ['--getro', path])).trim(), '1');
    assert.ok((await readFile(path)).equals(await readFile('/mnt/ext4/image')));
    await served.remove('image');
    assert.equal((await stat('/mnt/ext4/image')).size, MiB, 'del keeps a file');
    const written = await served.add({ name: 'image', backend: { type: 'file', path: '/mnt/ext4/image', sync: true } });
    const queue = `/sys/block/${pathOf(written).slice('/dev/'.length)}/queue`;
    assert.equal((await readFile(`${queue}/write_cache`, 'utf8')).trim(), 'write through');
    await served.remove('image');
    const loop = (await ok('losetup', ['--show', '-rf', '/mnt/tmpfs/small'])).trim();
    const onLoop = await served.add({ name: 'image', backend: { type: 'file', path: loop } });
    assert.equal((await ok('blockdev', ['--getro', pathOf(onLoop)])).trim(), '1');
    assert.deepEqual(
      onLoop.choices.filter(({ what }) => what === 'readOnly').map(({ why }) => why),
      ['the block device is'],
    );
    await served.remove('image');
    await ok('losetup', ['-d', loop]);
  });

  await t.test(
    'a file that shrank gives EIO, is not made larger, and is not recovered until it is restored',
    async () => {
      const path = '/mnt/tmpfs/shrinking';
      const device = await served.add({ name: 'shrinking', backend: { type: 'file', path, size: SIZE } });
      await using file = await DirectFile.open(pathOf(device));
      await file.write(0, randomBytes(MiB));
      const content = await readFile(path);
      await truncate(path, 2 * PAGE + 100);
      assert.equal((await file.read(0, 2 * PAGE)).compare(content.subarray(0, 2 * PAGE)), 0);
      for (const offset of [2 * PAGE, 4 * MiB]) {
        await assert.rejects(file.read(offset, PAGE), { code: 'EIO' });
        await assert.rejects(file.write(offset, randomBytes(PAGE)), { code: 'EIO' });
      }
      assert.equal((await stat(path)).size, 2 * PAGE + 100);
      process.kill(pidsOf(device)[0] ?? assert.fail(), 'SIGKILL');
      await waitFor('the device being degraded', async () => (await served.device('shrinking')).state === 'degraded');
      assert.match((await served.device('shrinking')).reason ?? '', /shrank from 8392704 to 8292 bytes/);
      await writeFile(path, content, { flag: 'r+' });
      assert.equal((await served.api('POST', '/v1/devices/shrinking/recover')).status, 200);
      assert.ok((await readAll(file)).equals(content));
    },
  );

  await t.test('another file at the path is not served in the place of the first', async () => {
    const path = '/mnt/tmpfs/replaced';
    const device = await served.add({ name: 'replaced', backend: { type: 'file', path, size: SIZE } });
    await using file = await DirectFile.open(pathOf(device));
    const data = randomBytes(MiB);
    await file.write(0, data);
    await rename(path, `${path}.original`);
    await truncateNew(path);
    process.kill(pidsOf(device)[0] ?? assert.fail(), 'SIGKILL');
    await waitFor('the device being degraded', async () => (await served.device('replaced')).state === 'degraded');
    assert.match((await served.device('replaced')).reason ?? '', /it is not what was opened; put that back/);
    await rename(`${path}.original`, path);
    assert.equal((await served.api('POST', '/v1/devices/replaced/recover')).status, 200);
    assert.ok((await file.read(0, MiB)).equals(data));
  });

  await t.test('errors of the store are those of the device', async () => {
    await shell(`
      mkdir /mnt/small; mount -t tmpfs -o size=4M tmpfs /mnt/small
      truncate -s ${SIZE} /mnt/tmpfs/half; loop=$(losetup --find --show /mnt/tmpfs/half)
      modprobe dm_mod
      printf '0 8192 linear %s 0\\n8192 8192 error\\n' $loop | dmsetup create --noudevsync half
      [ -e /dev/mapper/half ] || dmsetup mknodes half`);
    const full = await served.add({ name: 'full', backend: { type: 'file', path: '/mnt/small/file', size: SIZE } });
    const half = await served.add({ name: 'half', backend: { type: 'file', path: '/dev/mapper/half' } });
    await using small = await DirectFile.open(pathOf(full));
    for (let offset = 0; offset < 3 * MiB; offset += MiB) await small.write(offset, randomBytes(MiB));
    await assert.rejects(
      async () => {
        for (let offset = 3 * MiB; offset < 8 * MiB; offset += MiB) await small.write(offset, randomBytes(MiB));
      },
      { code: 'ENOSPC' },
    );
    await using bad = await DirectFile.open(pathOf(half));
    const data = randomBytes(PAGE);
    await bad.write(4 * MiB - PAGE, data);
    assert.ok((await bad.read(4 * MiB - PAGE, PAGE)).equals(data));
    await assert.rejects(bad.read(4 * MiB, PAGE), { code: 'EIO' });
    await assert.rejects(bad.write(4 * MiB, data), { code: 'EIO' });
    assert.equal((await served.device('half')).recoveries, 0);
    // Whoever looks for them there comes now and then.
    await served.logs(/a write of [0-9]+ sectors at [0-9]+ failed: no space left on device \(ENOSPC\)/, 120_000);
    await served.logs(/a read of 8 sectors at 8192 failed: i\/o error \(EIO\)/, 120_000);
  });

  await served.remove('half');
  await ok('dmsetup', ['remove', '--noudevsync', 'half']);
  assert.equal(await served.terminate(), 0);
  // Of the stores that were made to fail.
  await assertNothingLeft(served.runtimeDir, /I\/O error/);
});

async function truncateNew(path: string): Promise<void> {
  await using file = await open(path, 'wx');
  await file.truncate(SIZE);
}

/** With which flags a process has a file open. */
function openFlags(pid: number, path: string): number {
  const target = realpathSync(path);
  const proc = `/proc/${pid}`;
  const fd = readdirSync(`${proc}/fd`).find((name) => readlinkSync(`${proc}/fd/${name}`) === target);
  assert.ok(fd, `${path} is not open`);
  return parseInt(/^flags:\s*([0-7]+)$/m.exec(readFileSync(`${proc}/fdinfo/${fd}`, 'utf8'))?.[1] ?? '', 8);
}

test('nothing that was synchronised is lost when every process of ours is killed', async () => {
  const backend = { type: 'file', path: '/mnt/ext4/durable', size: '32MiB' };
  const served = await RunningSupervisor.start([{ name: 'durable', queues: 2, backend }]);
  const path = pathOf(await served.device('durable'));
  await shell(`mkfs.ext4 -q ${path}; mkdir /mnt/durable /mnt/after; mount ${path} /mnt/durable`);
  const data = randomBytes(4 * MiB);
  await using file = await open('/mnt/durable/data', 'w');
  await file.write(data);
  await file.sync();
  // Some are gone with their parent before their turn comes.
  await shell(`kill -9 ${[served.pid, ...processesNamed('ublk')].join(' ')} || true`);
  await waitFor('the end of all processes', () => processesNamed('ublk').length === 0);
  // The file system on the device waits for ever now, so its copy is looked at.
  await shell('cp /mnt/ext4/durable /mnt/tmpfs/after; mount -o loop /mnt/tmpfs/after /mnt/after');
  assert.ok((await readFile('/mnt/after/data')).equals(data));
});
