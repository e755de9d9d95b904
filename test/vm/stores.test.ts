// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, rename, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { zipArchive } from '../unit/backends/zip/zip-archive.js';
import { RunningSupervisor, assertNothingLeft, processesNamed, run, signal, waitFor } from './harness.js';

/** Stores that are replaced, removed, emptied or touched while their devices have users. */

const runtimeDir = '/run/stores';
const MIB = 2 ** 20;
const recovery = { maxRestarts: 1000 };

const start = (configured: readonly object[]): Promise<RunningSupervisor> =>
  RunningSupervisor.start(configured, { runtimeDir });

test('what becomes of stores while there is no supervisor', { timeout: 900_000 }, async (t) => {
  const directory = '/dev/shm/stores';
  const zip = join(directory, 'image.zip');
  const image = join(directory, 'image');
  const memoryFile = '/dev/shm/ublk-supervisor/memory.ram';
  const stores = [
    { name: 'zip', queues: 2, recovery, backend: { type: 'zip', path: zip } },
    { name: 'image', recovery, backend: { type: 'file', path: image, size: '1MiB' } },
    { name: 'memory', recovery, backend: { type: 'ram', size: '1MiB' } },
  ];
  const names = stores.map(({ name }) => name);
  const first = randomBytes(MIB);
  const archiveOf = (content: Buffer): Buffer => zipArchive([{ name: 'disk', data: content, stored: true }]);
  const replace = async (path: string, content: Buffer): Promise<void> => {
    await writeFile(`${path}.new`, content);
    await rename(`${path}.new`, path);
  };

  await mkdir(directory);
  await writeFile(zip, archiveOf(first));
  let served = await start(stores);
  for (const name of names.slice(1)) {
    await using file = await DirectFile.open((await served.device(name)).path ?? assert.fail('no path'));
    await file.write(0, first);
  }
  const assertFirst = async (name: string): Promise<void> => {
    await using file = await DirectFile.openReadOnly((await served.device(name)).path ?? assert.fail('no path'));
    assert.ok(first.equals(await file.read(0, MIB)), `${name} has other data`);
  };
  /** With another supervisor, after what is done in between; `everything`: no process of ours outlives the first one. */
  const afterwards = async (act: () => Promise<unknown>, everything = false): Promise<void> => {
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    if (everything) {
      for (const pid of processesNamed('ublk')) signal(pid, 'SIGKILL');
      await waitFor('the end of all processes', () => processesNamed('ublk').length === 0);
    }
    await act();
    served = await start(stores);
  };
  const killQueue = async (name: string): Promise<void> => {
    process.kill((await served.device(name)).queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
  };
  const untilDegraded = (name: string, reason: RegExp): Promise<unknown> =>
    waitFor(`${name} being degraded`, async () => {
      const device = await served.device(name);
      return device.state === 'degraded' && reason.test(device.reason ?? '');
    });
  const untilReason = (name: string, reason: RegExp): Promise<unknown> =>
    waitFor(`the reason of ${name}`, async () => reason.test((await served.device(name)).reason ?? ''));

  await t.test('E6 what is open goes on being served, whatever is at its path by now', async () => {
    const processes = async (): Promise<unknown> =>
      Promise.all(names.map(async (name) => (await served.device(name)).queues.map(({ pid }) => pid)));
    const before = await processes();
    await afterwards(async () => {
      await rename(image, `${image}.first`);
      await Promise.all([replace(zip, archiveOf(randomBytes(MIB))), replace(image, randomBytes(MIB))]);
    });
    await untilReason('image', /it is not what was opened; put that back/);
    await served.logs(/device zip: archive .* is gone, or another file by now/);
    assert.deepEqual(await processes(), before);
    for (const name of names) await assertFirst(name);
    // Nor does a recovery take the new one.
    await killQueue('zip');
    await served.untilLive('zip', 1);
    await assertFirst('zip');
    await killQueue('image');
    await untilDegraded('image', /it is not what was opened/);
    await rename(`${image}.first`, image);
    await served.untilLive('image');
    await assertFirst('image');
  });

  await t.test('E6 an archive that was removed or touched is served', async () => {
    await afterwards(() => rm(zip));
    await assertFirst('zip');
    await killQueue('zip');
    await served.untilLive('zip', 1);
    await assertFirst('zip');
    await replace(zip, archiveOf(first));
    await afterwards(() => Promise.resolve(), true);
    await served.untilLive('zip');
    await run('touch', ['-d', '2001-02-03', zip]);
    await assertFirst('zip');
    await afterwards(() => run('touch', ['-d', '2002-03-04', zip]));
    await assertFirst('zip');
  });

  await t.test('E6 a file that was emptied is not filled again', async () => {
    for (const everything of [false, true]) {
      await afterwards(() => truncate(image, 0), everything);
      await untilReason('image', /it shrank from 1048576 to 0 bytes; restore it/);
      assert.equal((await served.device('image')).state, everything ? 'degraded' : 'live');
      assert.equal((await stat(image)).size, 0);
      await writeFile(image, first, { flag: 'r+' });
      await waitFor('the file being found', async () => (await served.device('image')).reason === null);
      await served.untilLive('image');
      await assertFirst('image');
    }
  });

  await t.test('E6 with nothing open a store that is another is waited for to be put back', async () => {
    await afterwards(async () => {
      for (const path of [zip, image, memoryFile]) await rename(path, `${path}.first`);
      await Promise.all([replace(zip, archiveOf(randomBytes(MIB))), replace(image, randomBytes(MIB))]);
    }, true);
    await untilDegraded('zip', /its entry "disk" has CRC-32 .*, its device was made of CRC-32 .*; put that back/);
    await untilDegraded('image', /it is not what its device was made of; put that back/);
    await untilDegraded('memory', /no such file/);
    for (const path of [zip, image, memoryFile]) await rename(`${path}.first`, path);
    for (const name of names) {
      await served.untilLive(name);
      await assertFirst(name);
    }
  });

  await t.test('E6 what opens stores, stopped, keeps none of them from the next supervisor', async () => {
    for (const pid of processesNamed('ublk-stores')) signal(pid, 'SIGSTOP');
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    for (const pid of processesNamed('ublk-zygote')) signal(pid, 'SIGKILL');
    served = await start(stores);
    for (const name of names) await served.untilLive(name, 1, 120_000);
    for (const name of names) await assertFirst(name);
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
