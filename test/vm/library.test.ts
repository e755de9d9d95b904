// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { SupervisorError, serve } from 'ublk-supervisor';
import {
  RunningSupervisor,
  assertNothingLeft,
  ok,
  processesNamed,
  run,
  supervisorCommand,
  waitFor,
} from './harness.js';

/** The library, from this very process: `ublk-supervisor` is what package.json exports of this tree. */

const ram = { type: 'ram', size: '16MiB' } as const;
const privateDirectories = (): string[] => readdirSync('/run').filter((name) => name.startsWith('ublk-supervisor-'));
const silent = { info: () => undefined, warn: () => undefined, error: () => undefined };

test('a device lives as long as its scope, and recovers', async () => {
  const signals = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR2'] as const;
  const before = signals.map((signal) => process.listenerCount(signal));
  {
    const warnings: string[] = [];
    const log = { ...silent, warn: (_fields: object, message: string) => void warnings.push(message) };
    await using serving = await serve({ devices: [{ name: 'scoped', queues: 2, backend: ram }], log });
    const { scoped } = serving.devices;
    assert.match(scoped.path, /^\/dev\/ublkb[0-9]+$/);
    assert.deepEqual(
      signals.map((signal) => process.listenerCount(signal)),
      before,
    );
    await ok('mkfs.ext4', ['-q', scoped.path]);
    const pid = scoped.status().queues[0]?.pid;
    assert.ok(pid);
    process.kill(pid, 'SIGKILL');
    await waitFor('a recovery', () => scoped.status().recoveries === 1 && scoped.status().state === 'live', 30_000);
    assert.match(warnings.join('\n'), /serving device scoped failed/);
    await ok('e2fsck', ['-fn', scoped.path]);
    assert.equal(serving.status().supervisor.pid, process.pid);
    assert.deepEqual(
      serving.status().devices.map(({ name }) => name),
      ['scoped'],
    );
  }
  assert.deepEqual(privateDirectories(), []);
  await assertNothingLeft('/nowhere');
});

test('two at a time; each device can be stopped by itself, and one in use is refused', async () => {
  await using first = await serve({
    devices: [
      { name: 'a', backend: ram },
      { name: 'b', backend: { type: 'null', size: 4096 } },
    ],
    log: silent,
  });
  await using second = await serve({ devices: [{ name: 'a2', backend: ram }], log: silent });
  const { a, b } = first.devices;
  const { a2 } = second.devices;
  assert.equal(new Set([a.path, b.path, a2.path]).size, 3);

  const c = await second.add({ name: 'c', backend: { type: 'null', size: '1MiB' } });
  await assert.rejects(second.add({ name: 'c', backend: ram }), { code: 'EXISTS' });
  assert.equal((await c.restart()).generation, 2);
  assert.equal((await c.resize(2 ** 21)).size, 2 ** 21);
  assert.equal((await ok('blockdev', ['--getsize64', c.path])).trim(), String(2 ** 21));
  await c.stop();
  const instance = '{ size: 4096, read: (buffer) => buffer.fill(0).length }';
  await writeFile('/run/single.mjs', `export default { name: 'single', maxQueues: 1, open: () => (${instance}) };`);
  await assert.rejects(
    second.add({ name: 'single', queues: 2, backend: { type: '/run/single.mjs' } }),
    /its backend serves 1 queues at most, not 2; change queues/,
  );
  assert.throws(() => c.status(), { code: 'NOT_FOUND' });

  const { path } = b;
  await b.stop();
  await b.stop();
  assert.ok(!existsSync(path));
  assert.throws(() => b.status(), { name: 'SupervisorError', code: 'NOT_FOUND' });
  assert.throws(() => b.path, { code: 'NOT_FOUND' });

  await ok('mkfs.ext4', ['-q', a.path]);
  await ok('mount', [a.path, '/mnt']);
  await assert.rejects(first.stop(), { name: 'SupervisorError', code: 'IN_USE' });
  await assert.rejects(a.stop(), { code: 'IN_USE' });
  assert.equal(a.status().state, 'live');
  await ok('umount', ['/mnt']);
  await Promise.all([first.stop(), a.stop()]);
  await first.stop();

  assert.equal(a2.status().state, 'live');
  await second.stop();
  assert.deepEqual(privateDirectories(), []);
  await assertNothingLeft('/nowhere');
});

test('when one device cannot be started, none is served and nothing is left', async () => {
  await using taken = await serve({ devices: [{ name: 'taken', id: 7, backend: ram }], log: silent });
  await assert.rejects(
    serve({
      devices: [
        { name: 'good', backend: ram },
        { name: 'bad', id: 7, backend: ram },
      ],
      log: silent,
    }),
    (error) => error instanceof SupervisorError && error.code === 'EEXIST' && error.device === 'bad',
  );
  assert.deepEqual(
    readdirSync('/dev/shm/ublk-supervisor').filter((name) => /good|bad/.test(name)),
    [],
  );
  assert.equal(privateDirectories().length, 1);
  assert.equal(processesNamed('ublk-zygote').length, 1);
  await taken.stop();
  await assertNothingLeft('/nowhere');
});

test('a backend of the program is found from its directory', async () => {
  const directory = await mkdtemp('/run/backend-');
  await writeFile(
    join(directory, 'answers.mjs'),
    `export default { name: 'answers', open: () => ({ size: 8192, read: (buffer) => buffer.fill(42).length }) };`,
  );
  const before = process.cwd();
  process.chdir(directory);
  try {
    const devices = [{ name: 'answers', backend: { type: './answers.mjs' } }] as const;
    await using serving = await serve({ devices, log: silent });
    assert.deepEqual(await readFile(serving.devices.answers.path), Buffer.alloc(8192, 42));
  } finally {
    process.chdir(before);
  }
  await assertNothingLeft('/nowhere');
});

test('with a runtime directory the command line has a way in', async () => {
  const runtimeDir = await mkdtemp('/run/library-');
  await using serving = await serve({ devices: [{ name: 'open', backend: ram }], runtimeDir, log: silent });
  await assert.rejects(serve({ devices: [], runtimeDir, log: silent }), { code: 'RUNNING' });
  const { stdout } = await supervisorCommand('list', '--runtime-dir', runtimeDir, '--noheadings', '-o', 'NAME,PATH');
  assert.match(stdout, new RegExp(`^open +${serving.devices.open.path}\n?$`));
  assert.deepEqual(await supervisorCommand('stop', '--runtime-dir', runtimeDir), { code: 0, stdout: '', stderr: '' });
  const again = await serve({ devices: [], runtimeDir, log: silent });
  await again.stop();
  await serving.stop();
  await assertNothingLeft(runtimeDir);
});

test('when one device cannot be started, what an earlier program left is served on', async () => {
  const runtimeDir = await mkdtemp('/run/library-');
  const kept = { name: 'kept', backend: ram };
  const earlier = await RunningSupervisor.start([kept], { runtimeDir });
  process.kill(earlier.pid, 'SIGKILL');
  await earlier.exit;
  const pids = processesNamed('ublk/');
  const bad = { name: 'bad', backend: { type: 'file', path: '/nowhere/at/all' } } as const;
  // In a program of its own, as it is with those whose devices nobody could start.
  const program = `import { serve } from 'ublk-supervisor';
    const [runtimeDir, devices] = process.argv.slice(1).map(JSON.parse);
    await serve({ runtimeDir, devices });`;
  const args = [runtimeDir, [kept, { name: 'good', backend: ram }, bad]].map((value) => JSON.stringify(value));
  const failed = await run(process.execPath, ['--input-type=module', '-e', program, ...args], 60_000);
  assert.notEqual(failed.code, 0);
  assert.match(failed.stderr, /there is no directory nowhere on the way to it/);
  assert.deepEqual(processesNamed('ublk/'), pids);
  const next = await RunningSupervisor.start([kept], { runtimeDir });
  assert.deepEqual(
    (await next.status()).devices.map(({ name, state, queues }) => [name, state, queues[0]?.pid]),
    [['kept', 'live', pids[0]]],
  );
  assert.equal(await next.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});

test('a program that stopped what it served ends by itself', async () => {
  const program = `import { serve } from 'ublk-supervisor';
    const serving = await serve({ devices: [{ name: 'short', backend: { type: 'null', size: 4096 } }] });
    await serving.stop();`;
  assert.deepEqual(await run(process.execPath, ['--input-type=module', '-e', program], 60_000), {
    code: 0,
    stdout: '',
    stderr: '',
  });
});
