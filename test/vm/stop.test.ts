// kernels: newest
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, ok, processesNamed, run, shell, traces, waitFor } from './harness.js';
import { ramData, ramFile } from './ram-data.js';

/** Stopping: refused while somebody uses the device, and nothing that was written is lost by it. */

const names = ['mounted', 'held', 'elsewhere', 'forced', 'dirty', 'weak', 'dead', 'last', 'orphan'] as const;
const recovery = {
  weak: { auto: false },
  orphan: { auto: false },
  dead: { maxRestarts: 0, onGiveUp: 'stop' },
} as const;
const devices = names.map((name, id) => ({
  name,
  id,
  backend: { type: 'ram', size: '16MiB' },
  recovery: recovery[name as keyof typeof recovery],
}));

/**
 * Whoever still has a device that is stopped by force is told: its file system, which then wants to write that it was
 * unmounted, and a read that waits. Not among it are lost asynchronous writes, which would be of dirty pages.
 */
const expectedComplaints = new RegExp(
  [
    'I/O error, dev ublkb[357],',
    'Buffer I/O error on dev ublkb[37], logical block [0-9]+, lost sync page write',
    'JBD2: I/O error when updating journal superblock for ublkb[37]-',
    'EXT4-fs \\(ublkb[37]\\): I/O error while writing superblock',
  ].join('|'),
);

const firstBytes = async (name: string, length: number): Promise<Buffer> => (await ramData(name)).subarray(0, length);

interface Refusal {
  readonly error: { readonly code: string; readonly message: string };
}

interface Identity {
  readonly id: number;
  readonly path: string;
}

async function identify(served: RunningSupervisor, name: string): Promise<Identity> {
  const { id, path } = await served.device(name);
  assert.ok(id !== null && path !== null);
  return { id, path };
}

async function isServing(served: RunningSupervisor, name: string): Promise<void> {
  const { state, path } = await served.device(name);
  assert.equal(state, 'live');
  assert.ok(path);
  await ok('dd', [`if=${path}`, 'of=/dev/null', 'bs=4k', 'count=8', 'iflag=direct', 'status=none']);
}

async function isGone(served: RunningSupervisor, name: string, id: number): Promise<void> {
  assert.equal((await served.api('GET', `/v1/devices/${name}`)).status, 404);
  // The removal of the char device is the kernel's last step.
  await waitFor(`device ${name} leaving the kernel`, () => traces(id).length === 0, 5_000);
}

async function stops(served: RunningSupervisor, name: string, query = ''): Promise<void> {
  const { status, body } = await served.api('DELETE', `/v1/devices/${name}${query}`);
  assert.equal(status, 200, JSON.stringify(body));
}

/** A file system with a file whose data is still in the page cache only; returns the data. */
async function mountWithDirtyFile(path: string, mountPoint: string): Promise<Buffer> {
  await mkdir(mountPoint, { recursive: true });
  await ok('mkfs.ext4', ['-q', path]);
  await ok('mount', [path, mountPoint]);
  const data = randomBytes(4096);
  await writeFile(`${mountPoint}/file`, data);
  return data;
}

test('stopping devices', async (t) => {
  const served = await RunningSupervisor.start(devices);

  await t.test('E4 a mounted device is refused, with the mount named, and goes on', async () => {
    const { id, path } = await identify(served, 'mounted');
    await mountWithDirtyFile(path, '/mnt/with space');
    const { code, stdout, stderr } = await served.command('stop', 'mounted');
    assert.equal(code, 1);
    assert.equal(stdout, '');
    assert.match(stderr, /^ublk-supervisor: [^\n]*in use by a mount at \/mnt\/with space \(EBUSY\)[^\n]*--force$/);
    await isServing(served, 'mounted');
    await shell('head -c 1M /dev/urandom > "/mnt/with space/more"; sync');
    await ok('umount', ['/mnt/with space']);
    assert.deepEqual(await served.command('stop', 'mounted'), { code: 0, stdout: '', stderr: '' });
    await isGone(served, 'mounted', id);
    // Stopping keeps the data.
    await writeFile('/run/mounted.img', await ramData('mounted'));
    await ok('e2fsck', ['-fn', '/run/mounted.img']);
  });

  await t.test('E4 a device that a process has open is refused, with the pid named', async () => {
    const { id, path } = await identify(served, 'held');
    const file = await open(path, 'r');
    const { status, body } = await served.api('DELETE', '/v1/devices/held');
    assert.equal(status, 409);
    const { error } = body as Refusal;
    assert.equal(error.code, 'IN_USE');
    assert.match(error.message, new RegExp(`\\(pid ${process.pid}\\)`));
    await isServing(served, 'held');
    await file.close();
    await stops(served, 'held');
    await isGone(served, 'held', id);
  });

  await t.test('E4 a device that is mounted in another mount namespace is refused', async () => {
    const { id, path } = await identify(served, 'elsewhere');
    await ok('mkfs.ext4', ['-q', path]);
    await mkdir('/mnt/elsewhere');
    const script = `mount ${path} /mnt/elsewhere && : > /run/is-mounted && exec sleep 1000`;
    const other = spawn('unshare', ['-m', 'sh', '-c', script], { stdio: 'inherit' });
    const ended = new Promise((resolve) => other.once('exit', resolve));
    await waitFor('the mount', () => existsSync('/run/is-mounted'));
    assert.equal((await run('mountpoint', ['-q', '/mnt/elsewhere'])).code, 32, 'the mount is visible here');
    const { status, body } = await served.api('DELETE', '/v1/devices/elsewhere');
    assert.equal(status, 409);
    assert.match((body as Refusal).error.message, /a mount at \/mnt\/elsewhere/);
    await isServing(served, 'elsewhere');
    other.kill('SIGKILL');
    await ended;
    // The namespace, and with it the mount, goes a moment after its last process.
    await waitFor('the stop', async () => (await served.api('DELETE', '/v1/devices/elsewhere')).status === 200);
    await isGone(served, 'elsewhere', id);
  });

  await t.test('E4 forced, a mounted device is written back and goes; its id is free after umount', async () => {
    const { id, path } = await identify(served, 'forced');
    const data = await mountWithDirtyFile(path, '/mnt/forced');
    assert.deepEqual(await served.command('stop', 'forced', '--force'), { code: 0, stdout: '', stderr: '' });
    assert.ok((await ramData('forced')).includes(data), 'the dirty file was not written back');
    assert.equal((await served.api('GET', '/v1/devices/forced')).status, 404);
    await ok('umount', ['/mnt/forced']);
    await isGone(served, 'forced', id);
    const again = { name: 'again', id, backend: { type: 'null', size: '16MiB' } };
    assert.equal((await served.api('POST', '/v1/devices', again)).status, 201);
    await stops(served, 'again');
  });

  await t.test('E4 forced, an open device is written back first', async () => {
    const { id, path } = await identify(served, 'dirty');
    const data = randomBytes(4 * 2 ** 20);
    const file = await open(path, 'r+');
    await file.write(data, 0, data.length, 0);
    await stops(served, 'dirty', '?force=true');
    assert.ok((await firstBytes('dirty', data.length)).equals(data), 'dirty pages were thrown away');
    await file.close();
    await isGone(served, 'dirty', id);
  });

  await t.test('E5 a degraded device stops, and by force even under a reader', async () => {
    const { id, path } = await identify(served, 'weak');
    await mkdir('/mnt/weak');
    const killQueueProcess = async (): Promise<void> => {
      const pid = (await served.device('weak')).queues[0]?.pid;
      assert.ok(pid);
      process.kill(pid, 'SIGKILL');
      await waitFor('degraded', async () => (await served.device('weak')).state === 'degraded');
    };
    await killQueueProcess();
    const reader = run('dd', [`if=${path}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct']);
    await waitFor('the reader waiting', async () => {
      const { status, body } = await served.api('DELETE', '/v1/devices/weak');
      return status === 409 && (body as Refusal).error.message.includes('dd (pid');
    });
    assert.equal((await served.device('weak')).state, 'degraded');
    const begun = performance.now();
    await stops(served, 'weak', '?force=true');
    assert.ok(performance.now() - begun < 15_000);
    assert.equal((await reader).code, 1, 'a read that nobody answered succeeded');
    await isGone(served, 'weak', id);
  });

  await t.test('a failed device stops', async () => {
    const { id } = await identify(served, 'dead');
    const pid = (await served.device('dead')).queues[0]?.pid;
    assert.ok(pid);
    process.kill(pid, 'SIGKILL');
    const { reason } = await waitFor('the device failing', async () => {
      const device = await served.device('dead');
      return device.state === 'failed' && device;
    });
    assert.match(reason ?? '', /was killed by SIGKILL; the limit of 0 restarts/);
    await stops(served, 'dead');
    await isGone(served, 'dead', id);
  });

  await t.test('A2 a degraded device stops when the zygote that had its processes is gone', async () => {
    const { id } = await identify(served, 'orphan');
    for (const zygote of processesNamed('ublk-zygote')) process.kill(zygote, 'SIGKILL');
    await waitFor('degraded', async () => (await served.device('orphan')).state === 'degraded');
    await stops(served, 'orphan');
    await isGone(served, 'orphan', id);
    await served.untilLive('last', 1);
  });

  await t.test('E4 SIGTERM with a mounted device goes on serving; the second one forces', async () => {
    const { id, path } = await identify(served, 'last');
    const data = await mountWithDirtyFile(path, '/mnt/last');
    process.kill(served.pid, 'SIGTERM');
    await served.logs(/in use by a mount at \/mnt\/last[^\n]*still serving/);
    await isServing(served, 'last');
    assert.equal(await served.terminate(), 0);
    assert.ok((await ramData('last')).includes(data), 'the dirty file was not written back');
    await ok('umount', ['/mnt/last']);
    await waitFor('the device leaving the kernel', () => traces(id).length === 0, 5_000);
  });
  await assertNothingLeft(served.runtimeDir, expectedComplaints);
});

test('data outlives the device and the supervisor until it is deleted', async () => {
  const device = { name: 'kept', queues: 2, backend: { type: 'ram', size: '16MiB' } };
  const data = randomBytes(3 * 2 ** 20);
  await writeFile('/run/data', data);
  const write = (path: string, seek: number): Promise<string> =>
    ok('dd', ['if=/run/data', `of=${path}`, 'bs=64k', `seek=${seek}`, 'conv=notrunc', 'status=none']);

  let served = await RunningSupervisor.start([device]);
  const { id, path } = await identify(served, 'kept');
  await write(path, 0);
  await stops(served, 'kept');
  await isGone(served, 'kept', id);
  assert.ok((await firstBytes('kept', data.length)).equals(data), 'stop lost what was written');

  assert.equal((await served.api('POST', '/v1/devices', device)).status, 201);
  await write((await identify(served, 'kept')).path, 48);
  assert.equal(await served.terminate(), 0);
  const both = Buffer.concat([data, data]);
  assert.ok((await firstBytes('kept', both.length)).equals(both), 'stopping the supervisor lost what was written');

  served = await RunningSupervisor.start([device], { runtimeDir: served.runtimeDir });
  const again = await identify(served, 'kept');
  await ok('dd', [`if=${again.path}`, 'of=/run/read', 'bs=64k', 'count=96', 'iflag=direct', 'status=none']);
  assert.ok((await readFile('/run/read')).equals(both), 'the next supervisor does not serve the same data');
  await stops(served, 'kept', '?data=remove');
  assert.ok(!existsSync(ramFile('kept')), 'del left the data');
  assert.equal(await served.terminate(), 0);
  assert.doesNotMatch(served.log, /still open/);
  await assertNothingLeft(served.runtimeDir, expectedComplaints);
});

test('E4 a stop that meets a hang of the queue processes goes on after the recovery', async () => {
  const backend = { type: 'ram', size: '16MiB' };
  const served = await RunningSupervisor.start([{ name: 'hangs', queues: 2, requestTimeout: '2s', backend }]);
  const { queues } = await served.device('hangs');
  for (const { pid } of queues) process.kill(pid ?? assert.fail('no process'), 'SIGSTOP');
  assert.equal(await served.terminate(), 0);
  await served.logs(/"state":"recovering","from":"stopping"/);
  await assertNothingLeft(served.runtimeDir, expectedComplaints);
});
