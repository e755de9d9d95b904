// run: full
// kernels: newest
// guest: --no-ublk-module-load
import assert from 'node:assert/strict';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, ok, root, supervisorCommand } from './harness.js';

const modules = `/lib/modules/${release()}`;
const device = { name: 'n', backend: { type: 'null', size: '1GiB' } };

test('D4 without the ublk driver', async () => {
  const directory = await mkdtemp('/tmp/no-ublk-');
  const config = join(directory, 'config.json');
  await writeFile(config, JSON.stringify({ devices: [device] }));
  const runtimeDir = join(directory, 'run');
  const refusal = async (): Promise<string> => {
    const { code, stdout, stderr } = await supervisorCommand('start', config, '--runtime-dir', runtimeDir);
    assert.equal(code, 69, stderr);
    assert.equal(stdout, '');
    return stderr;
  };

  const [notLoaded, testBackend, features, doctor, check] = await Promise.all([
    refusal(),
    supervisorCommand('test-backend', join(root, 'examples/ram-backend.js'), 'size=65536', '--device'),
    supervisorCommand('features'),
    supervisorCommand('doctor', '--runtime-dir', runtimeDir),
    supervisorCommand('check', config),
  ]);
  assert.equal(notLoaded, 'ublk-supervisor: ublk driver: the module is not loaded; run: modprobe ublk_drv');
  assert.deepEqual(testBackend, {
    code: 1,
    stdout: '',
    stderr: `${notLoaded}; or use --vm, in a checkout of ublk-supervisor`,
  });
  assert.equal(features.code, 1);
  assert.match(features.stderr, /^ublk-supervisor: [^\n]+$/);
  assert.equal(doctor.code, 1);
  assert.match(doctor.stdout, /^fail +ublk driver: the module is not loaded; run: modprobe ublk_drv$/m);
  assert.deepEqual(check, { code: 0, stdout: '', stderr: '' });

  await ok('mount', ['-t', 'tmpfs', 'none', modules]);
  const unreadable = `ublk-supervisor: ublk driver: not loaded, and ${modules} cannot be read; run: modprobe ublk_drv`;
  assert.equal(await refusal(), `${unreadable} (outside of a container)`);
  await writeFile(join(modules, 'modules.dep'), 'kernel/drivers/block/brd.ko:\n');
  assert.match(await refusal(), /^ublk-supervisor: ublk driver: Linux \S+ has none; boot a kernel [^\n]+$/);
  await ok('umount', [modules]);

  // The advice is right.
  await ok('modprobe', ['ublk_drv']);
  const served = await RunningSupervisor.start([device], { runtimeDir });
  assert.equal((await served.device('n')).state, 'live');
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
