// kernels: newest
import { writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { zipArchive } from '../unit/backends/zip/zip-archive.js';
import { IMAGE_BYTES, makeSample, testBackends } from './device-suite.js';
import { shell } from './harness.js';
import { seed } from './random.js';

/** The same tests of a device over every native backend; what one backend alone has to do is in a file of its own. */

/** No multiple of what a request holds. */
const SIZE = 8 * 2 ** 20 + 4096;

const usual = { size: SIZE, kills: 2 };
const archived = { size: IMAGE_BYTES, readOnly: true, writeCache: false, discard: false, writeZeroes: false, kills: 2 };

test('every native backend', { timeout: 1_100_000 }, async (t) => {
  t.diagnostic(`seed ${seed}`);
  await shell(`
    modprobe loop
    mkdir -p /mnt/tmpfs /mnt/ext4
    mount -t tmpfs -o size=200M tmpfs /mnt/tmpfs
    truncate -s 64M /mnt/tmpfs/ext4.img
    mkfs.ext4 -q /mnt/tmpfs/ext4.img
    mount -o loop /mnt/tmpfs/ext4.img /mnt/ext4
    truncate -s ${SIZE} /mnt/tmpfs/disk
    ln -s $(losetup --find --show /mnt/tmpfs/disk) /dev/loop-disk`);
  const sample = await makeSample();
  const archive = '/tmp/archive.zip';
  await writeFile(
    archive,
    zipArchive([
      { name: 'deflated', data: sample.image, zip64: true },
      { name: 'stored', data: sample.image, stored: true },
    ]),
  );
  const rows = [
    { name: 'null', backend: { type: 'null', size: SIZE }, expected: { ...usual, forgets: true } },
    {
      name: 'ram-copy',
      settings: { dataPath: 'copy' },
      backend: { type: 'ram', size: SIZE + 512 },
      expected: { ...usual, size: SIZE + 512, blockSize: 512 },
    },
    {
      name: 'ram-user-copy',
      settings: { dataPath: 'user-copy', depth: 1 },
      backend: { type: 'ram', size: SIZE + 512 },
      expected: { ...usual, size: SIZE + 512, blockSize: 512 },
    },
    { name: 'file-on-tmpfs', backend: { type: 'file', path: '/mnt/tmpfs/file', size: SIZE }, expected: usual },
    {
      name: 'file-direct',
      backend: { type: 'file', path: '/mnt/ext4/direct', size: SIZE, direct: true },
      expected: { ...usual, blockSize: 512 },
    },
    {
      name: 'file-buffered',
      backend: { type: 'file', path: '/mnt/ext4/buffered', size: SIZE, direct: false },
      expected: { ...usual, blockSize: 512 },
    },
    { name: 'file-on-block-device', backend: { type: 'file', path: '/dev/loop-disk' }, expected: usual },
    { name: 'zip-deflated', backend: { type: 'zip', path: archive, entry: 'deflated' }, expected: archived },
    {
      name: 'zip-stored',
      backend: { type: 'zip', path: archive, entry: 'stored' },
      expected: { ...archived, blockSize: 512 },
    },
  ];
  await testBackends(t, rows, sample);
});
