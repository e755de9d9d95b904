import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { test } from 'node:test';
import { Served, assertNothingLeft, ok, root, shell } from './harness.js';

const devices = [
  { name: 'small-blocks', queues: 2, blockSize: 512, backend: { type: 'ram', size: '384MiB' } },
  { name: 'large-blocks', queues: 1, blockSize: 4096, backend: { type: 'ram', size: '384MiB' } },
];

const fileSystems = [
  { name: 'ext4', make: ['mkfs.ext4', '-q'], check: ['e2fsck', '-fn'] },
  { name: 'xfs', make: ['mkfs.xfs', '-q', '-f'], check: ['xfs_repair', '-n'] },
] as const;

test('file systems keep their data over unmounting', async (t) => {
  await ok('modprobe', ['xfs']);
  const served = await Served.start(devices);
  await mkdir('/mnt/fs', { recursive: true });
  for (const { name } of devices) {
    const { path } = await served.device(name);
    assert.ok(path);
    for (const { name: type, make, check } of fileSystems) {
      await t.test(`${type} on ${name}`, async () => {
        await ok(make[0], [...make.slice(1), path]);
        await ok('mount', [path, '/mnt/fs']);
        await shell(`cp -r ${root}src /mnt/fs/; head -c 16M /dev/urandom > /mnt/fs/large; sync`);
        const sums = await shell('cd /mnt/fs; find . -type f -exec sha256sum {} + | sort -k 2');
        await ok('umount', ['/mnt/fs']);
        await ok(check[0], [...check.slice(1), path]);
        await ok('mount', [path, '/mnt/fs']);
        assert.equal(await shell('cd /mnt/fs; find . -type f -exec sha256sum {} + | sort -k 2'), sums);
        await ok('umount', ['/mnt/fs']);
      });
    }
  }
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);
});
