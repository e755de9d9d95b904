import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { zipArchive } from '../unit/zip-archive.js';
import { DirectFile } from './direct-file.js';
import { Served, assertNothingLeft, ok, root, run, shell } from './harness.js';
import { random } from './random.js';

const MIB = 2 ** 20;
const imageBytes = 24 * MIB;
const archive = '/tmp/archive.zip';

/** An ext4 with this source tree and a file that does not compress. */
async function makeImage(): Promise<Buffer> {
  await shell(`mkdir /tmp/tree; cp -r ${root}src ${root}test /tmp/tree; head -c 6M /dev/urandom > /tmp/tree/random`);
  await ok('mke2fs', [
    '-q',
    '-t',
    'ext4',
    '-b',
    '4096',
    '-d',
    '/tmp/tree',
    '/tmp/image',
    `${String(imageBytes / 1024)}k`,
  ]);
  return readFile('/tmp/image');
}

async function compareWhole(path: string, expected: Buffer): Promise<void> {
  await using file = await DirectFile.openReadOnly(path);
  const hash = createHash('sha256');
  for (let offset = 0; offset < imageBytes; offset += MIB) hash.update(await file.read(offset, MIB));
  assert.equal(hash.digest('hex'), createHash('sha256').update(expected).digest('hex'));
}

async function compareRandom(path: string, expected: Buffer, reads: number): Promise<void> {
  await using file = await DirectFile.openReadOnly(path);
  for (let i = 0; i < reads; i++) {
    const offset = random(imageBytes / 4096) * 4096;
    const length = Math.min((1 + random(16)) * 4096, imageBytes - offset);
    const data = await file.read(offset, length);
    assert.ok(data.equals(expected.subarray(offset, offset + length)), `${path} differs at ${String(offset)}`);
  }
}

test('an entry of a zip archive as a block device', async (t) => {
  const image = await makeImage();
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
  await mkdir('/mnt/zip', { recursive: true });
  const served = await Served.start([
    { name: 'deflated', queues: 2, backend: zip('deflated.img') },
    { name: 'stored', queues: 1, blockSize: 512, backend: zip('stored.img') },
    { name: 'odd', backend: zip('odd') },
  ]);

  for (const name of ['deflated', 'stored']) {
    await t.test(`the ${name} entry`, async () => {
      const { path } = await served.device(name);
      assert.ok(path);
      assert.equal((await ok('blockdev', ['--getro', '--getsize64', path])).trim(), `1\n${String(imageBytes)}`);
      await compareWhole(path, image);
      await compareRandom(path, image, 100);
      assert.notEqual((await run('dd', ['if=/dev/zero', `of=${path}`, 'bs=4k', 'count=1', 'oflag=direct'])).code, 0);
      await ok('mount', ['-o', 'ro', path, '/mnt/zip']);
      await ok('diff', ['-r', '/tmp/tree/test', '/mnt/zip/test']);
      await ok('cmp', ['/tmp/tree/random', '/mnt/zip/random']);
      await ok('umount', ['/mnt/zip']);
      await ok('e2fsck', ['-fn', path]);
    });
  }

  await t.test('a size that is no multiple of the block size', async () => {
    const { path } = await served.device('odd');
    assert.ok(path);
    await using file = await DirectFile.openReadOnly(path);
    const expected = Buffer.concat([image.subarray(0, 5000), Buffer.alloc(2 * 4096 - 5000)]);
    assert.ok((await file.read(0, 8192)).equals(expected));
    assert.equal((await file.read(8192, 4096)).length, 0);
  });

  await t.test('reads go on over the death of queue processes', async () => {
    const { path, generation, queues } = await served.device('deflated');
    assert.ok(path);
    const reading = compareRandom(path, image, 300);
    for (let kill = 1; kill <= 3; kill++) {
      const { pid } = (await served.device('deflated')).queues[kill % queues.length] ?? {};
      assert.ok(pid);
      process.kill(pid, 'SIGKILL');
      await served.untilGeneration('deflated', generation + kill);
    }
    await reading;
  });

  await t.test('a forged archive is refused with one line', async () => {
    const { code, stderr } = await served.command('add', 'zip', 'path=/tmp/forged.zip', '--name', 'forged');
    assert.notEqual(code, 0);
    assert.match(
      stderr,
      /^ublk-supervisor: opening archive \/tmp\/forged\.zip failed: its entry "a" cannot be served: .*\n?$/,
    );
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
      assert.ok(failed > 10, `${name}: ${String(failed)} failed reads`);
      assert.equal((await served.device(name)).generation, generation);
    }
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir, /I\/O error, dev ublkb/);
});
