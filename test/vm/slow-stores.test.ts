// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir, rename, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, ok, processesNamed, run, shell, signal, waitFor } from './harness.js';

/** A store that is missing, locked or hangs concerns its own device alone, which waits for it. */

const runtimeDir = '/run/slow-stores';
const stores = '/run/stores';
const MIB = 2 ** 20;
const at = (name: string): string => join(stores, `${name}.img`);
const file = (name: string): object => ({ name, backend: { type: 'file', path: at(name) } });
const devices = [{ name: 'fine', backend: { type: 'ram', size: '16MiB' } }, file('missing'), file('locked')];

async function makeStore(path: string): Promise<void> {
  await writeFile(path, '');
  await truncate(path, MIB);
}

/** Holds the lock that a device would take. */
async function lock(path: string): Promise<() => Promise<void>> {
  const child = spawn('flock', ['--exclusive', path, 'sh', '-c', 'echo locked; exec sleep infinity'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  return async () => {
    // The shell, which has the lock's descriptor too, is a child of flock.
    await run('pkill', ['-KILL', '-P', String(child.pid)]);
    child.kill('SIGKILL');
    await ended;
  };
}

test('stores that come late', { timeout: 900_000 }, async (t) => {
  await mkdir(stores);
  await makeStore(at('locked'));
  const unlock = await lock(at('locked'));
  let served = await RunningSupervisor.start(devices, { runtimeDir });
  const states = async (): Promise<string[]> =>
    (await served.status()).devices.map(({ name, state }) => `${name} ${state}`).sort();

  await t.test('E6 a device without its store is there, says why, and starts when it comes', async () => {
    assert.deepEqual(await states(), ['fine live', 'locked failed', 'missing failed']);
    assert.match(
      (await served.device('missing')).reason ?? '',
      /opening \/run\/stores\/missing\.img failed: .*no such/,
    );
    assert.match((await served.device('locked')).reason ?? '', /another process or device has it locked/);
    const recover = await served.command('recover', 'missing');
    assert.notEqual(recover.code, 0);
    assert.match(recover.stderr, /no such file/);
    await makeStore(at('missing'));
    await served.untilLive('missing');
    assert.equal((await served.device('missing')).reason, null);
    assert.deepEqual(await states(), ['fine live', 'locked failed', 'missing live']);
    await unlock();
    await served.untilLive('locked');
  });

  await t.test('E6 what an add asks for is refused at once, and nothing is left', async () => {
    const { status, body } = await served.api('POST', '/v1/devices', file('never'));
    assert.notEqual(status, 201);
    assert.match(JSON.stringify(body), /opening \/run\/stores\/never\.img failed: there is no such file/);
    assert.deepEqual(await states(), ['fine live', 'locked live', 'missing live']);
  });

  await t.test('E6 so it is when it has to be adopted: whoever uses it waits', async () => {
    const { path } = await served.device('missing');
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    for (const pid of processesNamed('ublk')) signal(pid, 'SIGKILL');
    await rename(at('missing'), `${at('missing')}.away`);
    const reading = ok('dd', [`if=${path ?? ''}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct', 'status=none']);
    served = await RunningSupervisor.start(devices, { runtimeDir });
    assert.deepEqual(await states(), ['fine live', 'locked live', 'missing degraded']);
    assert.match((await served.device('missing')).reason ?? '', /no such file/);
    assert.equal((await served.device('missing')).path, path);
    await rename(`${at('missing')}.away`, at('missing'));
    await reading;
    await served.untilLive('missing');
  });

  await t.test('E6 a device without its store can be stopped', async () => {
    assert.equal((await served.command('stop', 'missing')).code, 0);
    await rename(at('missing'), `${at('missing')}.away`);
    assert.equal(await served.terminate(), 0);
    served = await RunningSupervisor.start(devices, { runtimeDir });
    const failed = ['fine live', 'locked live', 'missing failed'];
    assert.deepEqual(await states(), failed);
    const upgrade = await served.command('upgrade', '--self');
    assert.equal(upgrade.code, 0, upgrade.stderr);
    await waitFor('the successor', () => served.log.split('"serving"').length === 3, 120_000);
    assert.deepEqual(await states(), failed);
    const stop = await served.command('stop', 'missing');
    assert.deepEqual([stop.code, stop.stderr], [0, '']);
    assert.deepEqual(await states(), ['fine live', 'locked live']);
  });

  await t.test('E6 one that hangs when it is opened keeps nobody waiting but who asked for it', async () => {
    await shell(`modprobe loop; mkdir -p /mnt/frozen; truncate -s 64M /run/frozen.img; mkfs.ext4 -q /run/frozen.img
      mount -o loop /run/frozen.img /mnt/frozen; truncate -s 1M /mnt/frozen/hung.img; fsfreeze --freeze /mnt/frozen`);
    const hung = { name: 'hung', backend: { type: 'file', path: '/mnt/frozen/hung.img' } };
    const adding = served.api('POST', '/v1/devices', hung);
    await waitFor('its being opened', async () => (await states()).includes('hung adding'));
    await served.add({ name: 'other', backend: { type: 'ram', size: '1MiB' } });
    await served.remove('other');
    assert.equal((await served.api('DELETE', '/v1/devices/hung?force=true')).status, 200);
    assert.notEqual((await adding).status, 201);
    assert.deepEqual(await states(), ['fine live', 'locked live']);
    await shell('fsfreeze --unfreeze /mnt/frozen');
    // Opened too late, it was closed again.
    await served.add(hung);
    await served.remove('hung');
    await shell('umount /mnt/frozen');
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
