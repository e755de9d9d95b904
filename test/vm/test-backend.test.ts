// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { assertNothingLeft, cli, root, run, trust } from './harness.js';

/** Recoveries, and a process of util-linux for each discard, in an emulated guest on a busy machine. */
const TIMEOUT_MS = 400_000;

const testBackend = (module: string, ...options: readonly string[]) =>
  run(process.execPath, [cli, 'test-backend', module, '--device', '--seed', '1', ...options], TIMEOUT_MS);

const nothingLeft = async (): Promise<void> => {
  await assertNothingLeft('/run/ublk-supervisor');
  assert.deepEqual(
    readdirSync('/run').filter((name) => name.startsWith('ublk-supervisor')),
    [],
  );
  const memory = '/dev/shm/ublk-supervisor';
  assert.deepEqual(existsSync(memory) ? readdirSync(memory) : [], []);
};

test('a good backend passes through a real device', async () => {
  const module = join(root, 'examples/ram-backend.js');
  await trust(module);
  const { code, stdout, stderr } = await testBackend(module, 'size=2097152');
  assert.equal(code, 0, stdout + stderr);
  assert.match(stdout, /^ok +opens: 2M, blocks of 512 bytes/);
  assert.match(stdout, /^ok +opened again after its process was killed/m);
  assert.match(stdout, /^ok +answers what is under way when its processes are killed$/m);
  assert.match(stdout, /^[0-9]+ passed, 0 failed, [0-9]+ skipped$/m);
  assert.equal(stderr, '');
  await nothingLeft();
});

test('a bad one fails with the operation that fails', async () => {
  const module = join(await mkdtemp('/run/bad-'), 'bad.mjs');
  await writeFile(
    module,
    `export default { name: 'bad', open: (_options, context) => {
      const disk = context.sharedMemory('disk', 65536);
      return {
        size: disk.length,
        read: (buffer, offset) => disk.copy(buffer, 0, offset, offset + buffer.length),
        write: (buffer, offset) => (buffer.length === 3072 ? 3072 : buffer.copy(disk, offset)),
      };
    } };`,
  );
  const { code, stdout, stderr } = await testBackend(module);
  assert.equal(code, 1, stderr);
  const random =
    /^fail {2}random operations: read of [^\n]+: byte [^\n]+\n +after 1 operation, with --seed 1:\n +write of 3072 bytes at /m;
  assert.match(stdout, random);
  assert.match(stdout, /^[0-9]+ passed, 1 failed, [0-9]+ skipped$/m);
  await nothingLeft();
});
