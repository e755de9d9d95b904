// kernels: newest
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ext4, testFileSystem } from './device-suite.js';
import { RunningSupervisor, assertNothingLeft, root, shell } from './harness.js';

const devices = [
  { name: 'small-blocks', queues: 2, blockSize: 512, backend: { type: 'ram', size: '384MiB' } },
  { name: 'large-blocks', queues: 1, blockSize: 4096, backend: { type: 'ram', size: '384MiB' } },
];

const fileSystems = [
  { name: 'ext4', ...ext4 },
  { name: 'xfs', make: ['mkfs.xfs', '-q', '-f'], check: ['xfs_repair', '-n'] },
] as const;

test('file systems keep their data over unmounting', async (t) => {
  await shell(`modprobe xfs; cp -r ${root}src /tmp/tree; head -c 16M /dev/urandom > /tmp/tree/large`);
  const served = await RunningSupervisor.start(devices);
  for (const { name } of devices) {
    const { path } = await served.device(name);
    assert.ok(path);
    for (const { name: type, ...tools } of fileSystems) {
      await t.test(`${type} on ${name}`, async () => {
        await testFileSystem(path, tools, '/tmp/tree');
      });
    }
  }
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);
});
