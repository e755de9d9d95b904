import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import t from 'tap';

/** The package as a stranger gets it: packed, then installed elsewhere with no script allowed to run. */

// npm packs and installs, and tsc runs, on machines that may have other things to do.
t.setTimeout(180_000);

const root = fileURLToPath(new URL('../../../', import.meta.url));
const directory = await mkdtemp(join(tmpdir(), 'package-'));
t.teardown(() => rm(directory, { recursive: true }));

/** The environment is bare, so that neither npm's nor tap's settings reach a child. */
const elsewhere = { cwd: directory, extendEnv: false, env: { PATH: process.env.PATH, HOME: process.env.HOME } };
const must = execa(elsewhere);
const run = execa({ ...elsewhere, reject: false });
const script = (type: 'module' | 'commonjs', text: string): ReturnType<typeof run> =>
  run(process.execPath, [`--input-type=${type}`, '-e', text]);

interface Packed {
  readonly filename: string;
  readonly files: readonly { readonly path: string }[];
}

await writeFile(join(directory, 'package.json'), '{ "private": true, "type": "module" }');
const { stdout } = await must`npm pack ${root} --json --ignore-scripts`;
const [packed] = JSON.parse(stdout) as [Packed];
await must`npm install --ignore-scripts --prefer-offline --no-audit --no-fund ${packed.filename}`;
const installed = join(directory, 'node_modules/ublk-supervisor');

t.test('it has what runs, what that was compiled from, and what one reads; no more', async (t) => {
  const paths = packed.files.map(({ path }) => path);
  const wanted = [
    ...['build/Release/ublk.node', 'build/Release/zygote.so', 'binding.gyp', 'backends/registry.cpp'],
    ...[
      'dist/programs/ublk-supervisor.js',
      'dist/programs/LICENSES',
      'src/native/queue/queue.hpp',
      'man/ublk-supervisor.8',
      'deploy/ublk-supervisor.service',
      'examples/config.json',
      'README.md',
      'LICENSE',
    ],
  ];
  t.strictSame(
    wanted.filter((path) => !paths.includes(path)),
    [],
  );
  t.strictSame(
    paths.filter((path) => /^(dist\/)?(test|bench|demo|vm)\/|zygote_faults|tsconfig|(?<!\.d)\.ts$/.test(path)),
    [],
  );
});

t.test('its source maps need no file that is not there', async (t) => {
  const map = JSON.parse(await readFile(join(installed, 'dist/src/library/serve.js.map'), 'utf8')) as object;
  t.match(map, { sourcesContent: [/export async function serve/] });
});

t.test('its command runs', async (t) => {
  const command = join(directory, 'node_modules/.bin/ublk-supervisor');
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
  t.match(await run(command, ['--version']), { exitCode: 0, stdout: version, stderr: '' });
  t.match(await run(command, ['check', join(installed, 'examples/config.json')]), { exitCode: 0, stderr: '' });
  t.match(await run(command, ['test-backend', 'disk.js', '--vm']), {
    exitCode: 1,
    stderr: /^ublk-supervisor: test-backend --vm failed: .* has no virtual machine; use a checkout [^\n]+$/,
  });
});

t.test('installed for the whole machine it is where the manual and the unit look for it', async (t) => {
  const prefix = join(directory, 'usr');
  await must`npm install -g --prefix ${prefix} --ignore-scripts --prefer-offline --no-audit --no-fund ./${packed.filename}`;
  t.match(await run(join(prefix, 'bin/ublk-supervisor'), ['--help']), {
    exitCode: 0,
    stdout: /Usage: ublk-supervisor/,
  });
  for (const path of [
    'share/man/man8/ublk-supervisor.8',
    'lib/node_modules/ublk-supervisor/deploy/ublk-supervisor.service',
    'lib/node_modules/ublk-supervisor/dist/programs/ublk-supervisor.js',
  ]) {
    t.ok(existsSync(join(prefix, path)), path);
  }
  const unit = await readFile(join(installed, 'deploy/ublk-supervisor.service'), 'utf8');
  t.match(unit, /^ExecStart=ublk-supervisor start /m, 'found by systemd in /usr/local/bin and /usr/bin');
});

const use = `.then(async ({ serve, defineBackend, SupervisorError }) => {
  defineBackend({ name: 'b', open: () => { throw new Error() } });
  const error = await serve({ devices: [{}] }).catch((error) => error);
  console.log(error instanceof SupervisorError, error.message.split('\\n')[0]);
});`;
const answer = { exitCode: 0, stdout: /^true serve: devices\[0\]\.name: expected/, stderr: '' };

t.test('it can be imported', async (t) => {
  t.match(await script('module', `import * as all from 'ublk-supervisor'; Promise.resolve(all)${use}`), answer);
  t.match(await script('commonjs', `import('ublk-supervisor')${use}`), answer);
  const testing = "import * as all from 'ublk-supervisor/testing'; console.log(Object.keys(all).join());";
  t.match(await script('module', testing), { exitCode: 0, stdout: /[a-z]/, stderr: '' });
});

t.test('its compiled part loads, or says how to build it', async (t) => {
  const lock = `import { flock } from '${installed}/dist/src/native/addon/files.js';
    import { openSync } from 'node:fs';
    console.log(await flock(openSync('${directory}/package.json')));`;
  t.match(await script('module', lock), { exitCode: 0, stdout: 'true', stderr: '' });

  const addon = `${installed}/build/Release/ublk.node`;
  await writeFile(addon, 'not for this machine');
  const said = `^SupervisorError: loading ${addon} failed: .+; build it .*: npx node-gyp rebuild -C ${installed}/$`;
  t.match(await script('module', lock), { exitCode: 1, stderr: new RegExp(said, 'm') });
});

t.test('its types say what fits and what does not', async (t) => {
  await writeFile(
    join(directory, 'use.ts'),
    `import { defineBackend, serve, type DeviceStatus } from 'ublk-supervisor';
    export default defineBackend({
      name: 'zeros',
      open: () => ({ size: 4096, read: (buffer: Buffer) => buffer.fill(0).length }),
    });
    await using serving = await serve({
      devices: [{ name: 'a', queues: 2, backend: { type: 'ram', size: '1MiB' }, recovery: { window: '1min' } }],
    });
    const status: DeviceStatus = serving.devices.a.status();
    console.log(serving.devices.a.path.length, status.queues);
    // @ts-expect-error: no such device
    console.log(serving.devices.b);
    // @ts-expect-error: no queue number
    await serve({ devices: [{ name: 'a', queues: '1', backend: { type: 'ram', size: 1 } }] });`,
  );
  const types = ['--types', 'node', '--typeRoots', join(root, 'node_modules/@types')];
  const target = ['--target', 'es2023', '--lib', 'es2023,esnext.disposable', '--module', 'nodenext'];
  const compiled = await run(join(root, 'node_modules/.bin/tsc'), [
    '--noEmit',
    '--strict',
    ...target,
    ...types,
    'use.ts',
  ]);
  t.match(compiled, { exitCode: 0, stdout: '' });
});
