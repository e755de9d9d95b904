// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { zipArchive } from '../unit/backends/zip/zip-archive.js';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { IMAGE_BYTES, makeSample, testBackends } from './device-suite.js';
import {
  RunningSupervisor,
  assertNothingLeft,
  ok,
  processesNamed,
  root,
  shell,
  signal,
  trust,
  waitFor,
} from './harness.js';
import { seed } from './random.js';

/** Backends below one in JavaScript. */

const SIZE = 4 * 2 ** 20 + 4096;
const passing = join(root, 'test/vm/passing-backend.js');
const over = (below: object): object => ({ type: passing, below });

test('every backend below one in JavaScript', { timeout: 1_100_000 }, async (t) => {
  t.diagnostic(`seed ${seed}`);
  await trust(passing);
  await mkdir('/run/backends', { mode: 0o755 });
  await copyFile(join(root, 'test/vm/async-ram-backend.js'), '/run/backends/async-ram.mjs');
  await shell('mkdir -p /mnt/tmpfs; mount -t tmpfs -o size=200M tmpfs /mnt/tmpfs');
  const sample = await makeSample();
  await writeFile('/tmp/archive.zip', zipArchive([{ name: 'disk', data: sample.image }]));
  const usual = { size: SIZE, kills: 2 };
  const archived = {
    size: IMAGE_BYTES,
    readOnly: true,
    writeCache: false,
    discard: false,
    writeZeroes: false,
    kills: 1,
  };
  await testBackends(
    t,
    [
      { name: 'file', backend: over({ type: 'file', path: '/mnt/tmpfs/file', size: SIZE }), expected: usual },
      { name: 'ram', backend: over({ type: 'ram', size: SIZE }), expected: usual },
      { name: 'zip', backend: over({ type: 'zip', path: '/tmp/archive.zip' }), expected: archived },
      { name: 'module', backend: over({ type: '/run/backends/async-ram.mjs' }), expected: usual },
    ],
    sample,
  );
});

test('a store below a backend in JavaScript is kept as others are', async (t) => {
  await trust(passing);
  const runtimeDir = '/run/lower';
  await mkdir('/run/stores');
  const path = '/run/stores/disk.img';
  const kept = { name: 'kept', queues: 2, user: 1000, backend: over({ type: 'file', path, size: SIZE }) };
  const devices = [kept, { name: 'memory', backend: over({ type: 'ram', size: SIZE }) }];
  let served = await RunningSupervisor.start(devices, { runtimeDir });
  const pattern = Buffer.alloc(4096, 'kept');
  const pathOf = async (name: string): Promise<string> => (await served.device(name)).path ?? assert.fail(served.log);
  const read = async (name: string): Promise<Buffer> => {
    await using disk = await DirectFile.open(await pathOf(name));
    return await disk.read(8192, pattern.length);
  };
  for (const { name } of devices) {
    await using disk = await DirectFile.open(await pathOf(name));
    await disk.write(8192, pattern);
    await disk.flush();
  }
  const pidsOf = async (): Promise<(number | null)[]> =>
    (await served.status()).devices.flatMap(({ queues }) => queues.map(({ pid }) => pid));

  await t.test('no other device gets it', async () => {
    const { code, stderr } = await served.command('add', 'file', `path=${path}`, '--name', 'second');
    assert.notEqual(code, 0);
    assert.match(stderr, /another process or device has it locked/);
  });

  await t.test('A3 the next supervisor takes it over', async () => {
    const before = await pidsOf();
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    served = await RunningSupervisor.start(devices, { runtimeDir });
    for (const { name } of devices) await served.untilLive(name);
    assert.deepEqual(await pidsOf(), before);
    const { stderr } = await served.command('add', 'file', `path=${path}`, '--name', 'second');
    assert.match(stderr, /another process or device has it locked/);
    for (const pid of before) signal(pid ?? 0, 'SIGKILL');
    for (const { name } of devices) {
      await served.untilGeneration(name, 2, 120_000);
      assert.deepEqual(await read(name), pattern);
    }
  });

  await t.test('E6 whoever uses the device waits for it', async () => {
    await rename(path, `${path}.away`);
    for (const pid of processesNamed('ublk/')) signal(pid, 'SIGKILL');
    const reading = ok('dd', [`if=${await pathOf('kept')}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct']);
    await waitFor('its being missed', async () => {
      const { state, reason } = await served.device('kept');
      return state === 'degraded' && reason?.includes('disk.img failed: there is no such file any more') === true;
    });
    await rename(`${path}.away`, path);
    await reading;
    await served.untilLive('kept');
    assert.deepEqual(await read('kept'), pattern);
  });

  await t.test('its processes as they are now have it, too', async () => {
    const restart = await served.command('restart', 'kept');
    assert.deepEqual([restart.code, restart.stderr], [0, '']);
    assert.deepEqual(await read('kept'), pattern);
    const other = { ...kept, backend: over({ type: 'ram', size: SIZE }) };
    await served.configure([other, ...devices.slice(1)]);
    const { code, stderr } = await served.command('reload');
    assert.notEqual(code, 0);
    assert.match(stderr, /was made with other backends below it/);
    assert.deepEqual(await read('kept'), pattern);
  });

  await t.test('a process of another user cannot have any file opened', async () => {
    await writeFile('/secret', 'x'.repeat(4096));
    const backend = { ...over({ type: 'ram', size: SIZE }), literal: 'secret' };
    const asUser = await served.api('POST', '/v1/devices', { name: 'nosy', user: 1000, backend });
    assert.match(JSON.stringify(asUser.body), /asks for \/secret, which its options do not name/);
    assert.equal((await served.api('POST', '/v1/devices', { name: 'roots', backend })).status, 201);
    await served.remove('roots');
  });

  for (const { name } of devices) {
    const { status } = await served.api('DELETE', `/v1/devices/${name}?data=remove`);
    assert.equal(status, 200);
  }
  assert.ok(existsSync(path), 'it is no file of ours');
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
