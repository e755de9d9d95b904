// kernels: newest
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { singleBlock, zipArchive } from '../unit/backends/zip/zip-archive.js';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { RunningSupervisor, assertNothingLeft, ok, shell } from './harness.js';

const MIB = 2 ** 20;
const imageBytes = 24 * MIB;
const archive = '/tmp/archive.zip';

test('an entry of a zip archive as a block device', async (t) => {
  // Compresses to a half.
  const image = Buffer.from(randomBytes(imageBytes / 2).toString('hex'));
  const zip = (entry: string) => ({ type: 'zip', path: archive, entry });
  await writeFile(
    archive,
    zipArchive([
      { name: 'deflated.img', data: image, zip64: true },
      { name: 'stored.img', data: image, stored: true },
      { name: 'odd', data: image.subarray(0, 5000), sizesFollow: true },
    ]),
  );
  await writeFile('/tmp/forged.zip', zipArchive([{ name: 'a', data: image.subarray(0, MIB), both: { crc: 1 } }]));
  const served = await RunningSupervisor.start([
    { name: 'deflated', queues: 2, backend: zip('deflated.img') },
    { name: 'stored', queues: 1, blockSize: 512, backend: zip('stored.img') },
    { name: 'odd', backend: zip('odd') },
  ]);

  await t.test('a size that is no multiple of the block size', async () => {
    const { path } = await served.device('odd');
    assert.ok(path);
    await using file = await DirectFile.openReadOnly(path);
    const expected = Buffer.concat([image.subarray(0, 5000), Buffer.alloc(5120 - 5000)]);
    assert.ok((await file.read(0, 5120)).equals(expected));
    assert.equal((await file.read(5120, 4096)).length, 0);
  });

  await t.test('a forged archive is refused with one line', async () => {
    const { code, stderr } = await served.command('add', 'zip', 'path=/tmp/forged.zip', '--name', 'forged');
    assert.notEqual(code, 0);
    assert.match(
      stderr,
      /^ublk-supervisor: opening archive \/tmp\/forged\.zip failed: its entry "a" cannot be served: .*\n?$/,
    );
  });

  await t.test('a single deflate block of 256 MiB is read at random places', async () => {
    await writeFile('/tmp/block.zip', zipArchive([singleBlock('disk', 256 * MIB)]));
    const { path, size } = await served.add({ name: 'block', backend: { type: 'zip', path: '/tmp/block.zip' } });
    assert.ok(path && size > 256 * MIB);
    const job = ['--name=block', `--filename=${path}`, '--readonly', '--rw=randread', '--bs=4k', '--direct=1'];
    await ok('fio', [...job, '--ioengine=io_uring', '--iodepth=128', '--number_ios=500', '--size=256M', '--thread']);
    await shell(`dd if=${path} bs=1M skip=200 count=8 status=none | cmp -n ${8 * MIB} - /dev/zero`);
    assert.equal((await served.device('block')).generation, 1);
    await served.remove('block');
  });

  await t.test('an archive that was truncated fails reads, and nothing else', async () => {
    await truncate(archive, 1000);
    for (const name of ['deflated', 'stored']) {
      const { path, generation } = await served.device(name);
      assert.ok(path);
      await using file = await DirectFile.openReadOnly(path);
      let failed = 0;
      for (let offset = 0; offset < imageBytes; offset += MIB / 2) {
        try {
          // What a decoder had already taken in.
          assert.ok((await file.read(offset, 4096)).equals(image.subarray(offset, offset + 4096)));
        } catch (error) {
          assert.ok(error instanceof Error && 'code' in error && error.code === 'EIO', String(error));
          failed++;
        }
      }
      assert.ok(failed > 10, `${name}: ${failed} failed reads`);
      assert.equal((await served.device(name)).generation, generation);
    }
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir, /I\/O error, dev ublkb/);
});
