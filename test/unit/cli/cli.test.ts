import { once } from 'node:events';
import { readFileSync, readdirSync } from 'node:fs';
import { link, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { setting, settingText } from '../../../src/cli/common-options.js';
import { eventful as device, status } from '../supervisor/device/status.js';

const root = fileURLToPath(new URL('../../../../', import.meta.url));
const main = join(root, 'dist/programs/ublk-supervisor.js');

interface Result {
  readonly code: number | undefined;
  readonly out: string;
  readonly err: string;
}

/** The environment is bare: without tap's loaders a child starts in a fifth of the time. */
async function cli(...args: string[]): Promise<Result> {
  const { exitCode, stdout, stderr } = await execa(process.execPath, [main, ...args], {
    reject: false,
    extendEnv: false,
    env: { PATH: '/usr/bin:/bin' },
  });
  return { code: exitCode, out: stdout, err: stderr };
}

async function shortDirectory(t: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'cli-'));
  t.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

/** Answers every request with `document`, and tells what was asked. */
async function standIn(t: Test, document: object, status = 200): Promise<{ directory: string; asked: string[] }> {
  const directory = await shortDirectory(t);
  const asked: string[] = [];
  const server = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk: Buffer) => (body += chunk.toString()));
    request.on('end', () => {
      asked.push(`${request.method ?? ''} ${request.url ?? ''} ${body}`.trimEnd());
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(document));
    });
  });
  await new Promise<void>((resolve) => server.listen(join(directory, 'control.sock'), resolve));
  t.teardown(() => server.close());
  return { directory, asked };
}

// Some fifty child processes, on machines that may have other things to do.
t.setTimeout(300_000);

t.test('usage errors: 2, and 64 for the daemon, with one line of reason', async (t) => {
  const cases: readonly [code: number, args: string[], reason: RegExp][] = [
    [2, ['bogus'], /unknown command 'bogus'/],
    [2, ['--bogus'], /unknown option '--bogus'/],
    [2, ['list', '--bogus'], /unknown option '--bogus'/],
    [2, ['list', 'extra'], /too many arguments/],
    [2, ['list', '-o', 'NAME,COLOUR'], /Columns: NAME, /],
    [2, ['del'], /missing required argument 'name'/],
    [2, ['check'], /missing required argument 'config'/],
    [2, ['add', 'ram', 'size=1M'], /'--name <name>' not specified/],
    [2, ['add', 'ram', 'size', '--name', 'a'], /Expected key=value/],
    [2, ['add', 'ram', 'size=1M', 'size=2M', '--name', 'a'], /given twice/],
    [2, ['add', './b.js', 'cache={"size":1MiB}', '--name', 'a'], /cache:1:10: not JSON: .*; text that begins so goes/],
    [2, ['add', './b.js', 'cache={"a":1,"a":2}', '--name', 'a'], /cache:1:8: duplicate key "a"/],
    [2, ['add', './b.js', 'key="2024', '--name', 'a'], /key:1:1: not JSON: /],
    [2, ['add', 'ram', '--name', 'a', '-q', 'two'], /Expected a whole number/],
    [2, ['add', 'ram', '--name', 'a', '-d', '-1'], /whole number|missing/],
    [2, ['test-backend'], /missing required argument 'module'/],
    [2, ['test-backend', 'disk.js', 'size'], /Expected key=value/],
    [64, ['start'], /missing required argument 'config'/],
    [64, ['start', 'a', '--log-level', 'loud'], /Allowed choices/],
  ];
  for (const [code, args, reason] of cases) {
    const result = await cli(...args);
    t.equal(result.code, code, args.join(' '));
    t.match(result.err, reason);
    t.equal(result.out, '', 'nothing on stdout');
  }
});

t.test('no command at all shows the help and is a usage error', async (t) => {
  t.match(await cli(), { code: 2, out: '', err: /^Usage: ublk-supervisor/ });
});

t.test('help, version and schema need neither kernel nor supervisor', async (t) => {
  t.match(await cli('--help'), { code: 0, out: /doctor/, err: '' });
  t.match(await cli('list', '--help'), { code: 0, out: /RECOVERIES/, err: '' });
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };
  t.match(await cli('--version'), { code: 0, out: version });
  const schema = await cli('schema');
  t.equal(schema.code, 0);
  t.strictSame(JSON.parse(schema.out), JSON.parse(readFileSync(join(root, 'examples/config.schema.json'), 'utf8')));
});

t.test('commands that need a supervisor say that there is none: 3', async (t) => {
  const directory = await shortDirectory(t);
  for (const args of [
    ['status'],
    ['list'],
    ['add', 'ram', '--name', 'a'],
    ['del', 'a'],
    ['stop'],
    ['stop', 'a'],
    ['recover', 'a'],
    ['restart'],
    ['reload'],
    ['resize', 'a', '1G'],
    ['partitions', 'a'],
    ['fault', 'add', 'a', 'do=drop'],
    ['fault', 'list', 'a'],
  ]) {
    const { code, out, err } = await cli(...args, '--runtime-dir', directory);
    t.equal(code, 3, args.join(' '));
    t.equal(
      err,
      `ublk-supervisor: the supervisor is not running (no ${directory}/control.sock); start it with: ublk-supervisor start CONFIG`,
    );
    t.equal(out, '');
  }
});

t.test('without a supervisor, whose devices are served on', async (t) => {
  const directory = await shortDirectory(t);
  const zygotes = [1, 7].map((number) => createServer().listen(join(directory, `zygote-${number}.sock`)));
  await Promise.all(zygotes.map((zygote) => once(zygote, 'listening')));
  const { err } = await cli('status', '--runtime-dir', directory);
  t.match(err, /not running \(no [^;]+\); 2 devices are served on without it, and the next one takes over; start it/);
  for (const zygote of zygotes) zygote.close();
});

t.test('C1 a broken configuration: 78 from check and start alike, and nothing is made', async (t) => {
  const directory = join(await shortDirectory(t), 'run');
  for (const name of ['depth-4097', 'duplicate-key', 'many-problems', 'empty', 'name-escape']) {
    const path = join(root, 'test/unit/config/cases', `${name}.json`);
    const expected = readFileSync(path.replace(/json$/, 'expected'), 'utf8').trimEnd();
    const lines = expected
      .split('\n')
      .map((line) => `ublk-supervisor: ${line.replace('CONFIG', path)}`)
      .join('\n');
    t.strictSame(await cli('check', path), { code: 78, out: '', err: lines });
    t.strictSame(await cli('start', path, '--runtime-dir', directory), { code: 78, out: '', err: lines });
  }
  t.match(await cli('check', '/none'), {
    code: 78,
    err: /^ublk-supervisor: reading configuration \/none failed: .*\(ENOENT\)$/,
  });
  t.throws(() => readdirSync(directory), { code: 'ENOENT' });
});

t.test('check looks at the files of devices, and makes and opens none', async (t) => {
  const directory = await shortDirectory(t);
  const at = (name: string): string => join(directory, name);
  await mkdir(at('folder'));
  await writeFile(at('disk.img'), Buffer.alloc(8192));
  await writeFile(at('empty.img'), '');
  await link(at('disk.img'), at('same.img'));
  await execa('mkfifo', [at('pipe')]);
  const check = async (...backends: object[]): Promise<Result> => {
    const devices = backends.map((backend, index) => ({ name: `d${index}`, backend }));
    await writeFile(at('config.json'), JSON.stringify({ devices }));
    return await cli('check', at('config.json'));
  };
  const file = (path: string, options: object = {}): object => ({ type: 'file', path, ...options });
  const zip = (path: string): object => ({ type: 'zip', path });
  const bad = await check(
    file('none.img'),
    file('none-read.img', { size: 8192, readOnly: true }),
    file('folder/none/new.img', { size: 8192 }),
    file('folder'),
    file('pipe'),
    file('/dev/null'),
    file('disk.img', { size: 16_384 }),
    file('empty.img'),
    file('same.img/more'),
    zip('none.zip'),
    zip('folder'),
    zip('pipe'),
  );
  const problems = [
    `opening ${at('none.img')} failed: there is no such file; give a size to create it`,
    `opening ${at('none-read.img')} failed: there is no such file; give a size to create it`,
    `opening ${at('folder/none/new.img')} failed: there is no directory none on the way to it (ENOENT)`,
    `opening ${at('folder')} failed: it is a directory; name a file or a block device`,
    `opening ${at('pipe')} failed: it is a FIFO; name a file or a block device`,
    'opening /dev/null failed: it is a character device; name a file or a block device',
    `opening ${at('disk.img')} failed: it has 8192 bytes, not the 16384 configured; change one of them`,
    `opening ${at('empty.img')} failed: it has 0 bytes, which is less than one block of 512`,
    `opening ${at('same.img/more')} failed: not a directory (ENOTDIR)`,
    `opening archive ${at('none.zip')} failed: no such file or directory (ENOENT)`,
    `opening archive ${at('folder')} failed: it is not a regular file`,
    `opening archive ${at('pipe')} failed: it is not a regular file`,
  ];
  const lines = problems.map(
    (problem, index) => `ublk-supervisor: ${at('config.json')}: devices[${index}].backend: ${problem}`,
  );
  t.strictSame(bad.err.split('\n'), lines);
  t.match(bad, { code: 78, out: '' });

  const twice = await check(
    file('disk.img'),
    file('same.img'),
    file('new.img', { size: 4096 }),
    file(at('folder/../new.img'), { size: 4096 }),
  );
  t.match(twice, { code: 78 });
  t.strictSame(
    [...twice.err.matchAll(/devices\[(\d)\]\.backend: .*same as that of devices\[(\d)\]/g)].map(([, a, b]) => [a, b]),
    [
      ['1', '0'],
      ['3', '2'],
    ],
  );
  const good = await check(file('disk.img'), file('empty.img', { size: 8192 }), file('new.img', { size: 4096 }));
  t.strictSame(good, { code: 0, out: '', err: '' });
  t.strictSame((await readdir(directory)).sort(), [
    'config.json',
    'disk.img',
    'empty.img',
    'folder',
    'pipe',
    'same.img',
  ]);
});

t.test('check loads the backends of devices, and opens none', async (t) => {
  const define = "import { defineBackend } from 'ublk-supervisor';\nexport default defineBackend";
  const neverOpened = "open() { throw new Error('it was opened'); }";
  const modules = {
    'good.js': `${define}({ name: 'good', maxQueues: 2, ${neverOpened} });`,
    'options.js': `import * as z from 'zod';\n${define}({ name: 'options', options: z.strictObject({ host: z.string() }), ${neverOpened} });`,
    'syntax.js': `${define}({\n  name: 'syntax' open() {} });`,
    'import.js': "import 'no-such-package';",
    'throws.js': "throw new Error('no luck');",
    'nothing.js': 'export const backend = 1;',
    'prints.js': `console.log('loading'); process.stdout.write('x'); ${define}({ name: 'prints', ${neverOpened} });`,
  };
  const directory = t.testdir({ ...modules, folder: {} });
  const config = join(directory, 'config.json');
  const check = async (devices: readonly object[], ...args: string[]): Promise<Result> => {
    const named = devices.map((device, index) => ({ name: `d${index}`, ...device }));
    await writeFile(config, JSON.stringify({ devices: named }));
    return await cli('check', ...args, config);
  };
  const bad = [
    { backend: { type: './none.js' } },
    { backend: { type: './folder/../folder.js' } },
    { backend: { type: './syntax.js' } },
    { backend: { type: './import.js' } },
    { backend: { type: './throws.js' } },
    { backend: { type: './nothing.js' } },
    { backend: { type: './good.js', host: 'localhost' } },
    { backend: { type: './options.js', host: 7, port: 1 } },
    { backend: { type: './good.js' }, queues: 3 },
  ];
  const { code, out, err } = await check(bad);
  t.match({ code, out }, { code: 78, out: '' });
  const expected = [
    /loading backend .*none\.js failed: no such file or directory \(ENOENT\)$/,
    /loading backend .*folder\.js failed: no such file or directory \(ENOENT\)$/,
    /loading backend .*syntax\.js failed: .*; line 3: name: 'syntax' open\(\) \{\} \}\);$/,
    /loading backend .*import\.js failed: Cannot find package 'no-such-package'/,
    /loading backend .*throws\.js failed: no luck$/,
    /loading backend .*nothing\.js failed: its default export is no backend; /,
    /backend good: unknown key host; it has no options$/,
    /backend options: host: expected a string, got 7/,
    /its backend serves 2 queues at most, not 3; change queues$/,
  ];
  t.match(
    [...bad.keys()].map((index) => err.split('\n').find((line) => line.includes(`devices[${index}].backend: `))),
    expected,
  );
  t.match(err, /devices\[7\]\.backend: backend options: unknown key "port"; allowed: host/);
  const silent = { code: 0, out: '', err: '' };
  t.strictSame(await check(bad, '--configuration-only'), silent);
  const good = [
    { backend: { type: './good.js' }, queues: 2 },
    { backend: { type: './options.js', host: 'localhost' } },
  ];
  t.strictSame(await check([...good, { backend: { type: './prints.js' } }]), silent);
});

t.test('a good configuration passes check silently', async (t) => {
  t.strictSame(await cli('check', join(root, 'examples/config.json')), { code: 0, out: '', err: '' });
});

t.test('list shows a table, JSON, raw and chosen columns', async (t) => {
  const { directory } = await standIn(t, status);
  const list = (...args: string[]): Promise<Result> => cli('list', '--runtime-dir', directory, ...args);
  t.strictSame(await list(), {
    code: 0,
    out: 'NAME     PATH         STATE  SIZE  BACKEND  QUEUES  RECOVERIES\nscratch  /dev/ublkb3  live   512M  ram           2           1',
    err: '',
  });
  t.match(await list('-b', '--raw', '--noheadings', '-o', 'size,reason,pids'), { out: '536870912 - 100,101' });
  t.match(await list('--noheadings', '-o', '+ID'), { out: /1 +3$/ });
  const { out } = await list('-J', '-o', 'NAME,SIZE,ID,PIDS,REASON');
  t.strictSame(JSON.parse(out), {
    devices: [{ name: 'scratch', size: 536_870_912, id: 3, pids: [100, 101], reason: null }],
  });
});

t.test('status shows everything, and JSON is what the supervisor said', async (t) => {
  const { directory } = await standIn(t, status);
  const { out } = await cli('status', '--runtime-dir', directory);
  t.match(out, 'ublk-supervisor 0.1.0, pid 42, Linux 6.12.0');
  t.match(out, 'scratch: live');
  t.match(out, 'recoveries: 1, the last with a pause of 93 ms');
  t.match(out, 'queue 1, pid 99: killed by SIGKILL');
  t.match(out, 'queue 1, a write of 8 sectors at 64: Error: no such luck');
  t.match(out, 'chosen    blockSize 4096: the data is new');
  t.match(
    out,
    'generation 1: signal, requests in it: 2, the oldest write zeroes of 8 sectors at 16 for 12 ms, pause 93 ms',
  );
  t.match(out, 'refused   read of 1 sectors at 8, after 3 crashes');
  t.strictSame(JSON.parse((await cli('status', '-J', '--runtime-dir', directory)).out), status);
});

t.test('add asks for what was given, no more, and prints only the path', async (t) => {
  const { directory, asked } = await standIn(t, device, 201);
  const result = await cli(
    'add',
    'ram',
    'size=1M',
    '--name',
    'a',
    '-n',
    '3',
    '-q',
    '2',
    '-d',
    '64',
    '-r',
    '--block-size',
    '512',
    '--data-path',
    'copy',
    '--runtime-dir',
    directory,
  );
  t.strictSame(result, { code: 0, out: '/dev/ublkb3', err: '' });
  await cli('add', 'null', 'size=1M', '--name', 'b', '--runtime-dir', directory);
  t.strictSame(asked, [
    `POST /v1/devices {"name":"a","id":3,"queues":2,"depth":64,"blockSize":512,"readOnly":true,"dataPath":"copy","directory":"${process.cwd()}","backend":{"size":"1M","type":"ram"}}`,
    `POST /v1/devices {"name":"b","directory":"${process.cwd()}","backend":{"size":"1M","type":"null"}}`,
  ]);
});

t.test('add leaves paths to the supervisor, which resolves or refuses them', async (t) => {
  const { directory, asked } = await standIn(t, device, 201);
  for (const path of ['disk.img', '~/disk.img', 'file:///disk.img']) {
    await cli('add', 'file', `path=${path}`, '--name', 'a', '--runtime-dir', directory);
  }
  t.strictSame(
    asked.map((request) => /"path":"([^"]*)"/.exec(request)?.[1]),
    ['disk.img', '~/disk.img', 'file:///disk.img'],
  );
});

t.test('values of a backend: numbers, true and false, JSON, and text', async (t) => {
  const given: readonly (readonly [string, unknown])[] = [
    ['20240131', 20_240_131],
    ['"20240131"', '20240131'],
    ['"true"', 'true'],
    ['"a \\"b\\""', 'a "b"'],
    ['-1.5', -1.5],
    ['007', '007'],
    ['1e5', '1e5'],
    ['12345678901234567890', '12345678901234567890'],
    ['false', false],
    ['null', 'null'],
    ['1MiB', '1MiB'],
    ['a=b', 'a=b'],
    ['', ''],
    ['{"size":4096,"kinds":["a",1,null]}', { size: 4096, kinds: ['a', 1, null] }],
    ['[]', []],
  ];
  for (const [text, value] of given) {
    const [read] = setting(`key=${text}`, []);
    t.strictSame(read, ['key', value], text);
    t.strictSame(setting(settingText(['key', value]), []), [['key', value]], 'and back');
  }
  const { directory, asked } = await standIn(t, device, 201);
  await cli('add', '/b.js', 'date="20240131"', 'cache={"size":4096}', '--name', 'a', '--runtime-dir', directory);
  t.match(asked, [/"backend":\{"date":"20240131","cache":\{"size":4096\},"type":"\/b.js"\}\}$/]);
});

t.test('del removes the data, stop keeps it', async (t) => {
  const { directory, asked } = await standIn(t, {});
  t.equal((await cli('del', 'a', '--runtime-dir', directory)).code, 0);
  t.equal((await cli('stop', 'a', '--force', '--runtime-dir', directory)).code, 0);
  t.equal((await cli('recover', '../a', '--runtime-dir', directory)).code, 0);
  t.equal((await cli('recover', 'a', '--clear-quarantine', '--runtime-dir', directory)).code, 0);
  t.strictSame(asked, [
    'DELETE /v1/devices/a?force=false&data=remove',
    'DELETE /v1/devices/a?force=true&data=keep',
    'POST /v1/devices/..%2Fa/recover',
    'POST /v1/devices/a/recover?clear-quarantine=true',
  ]);
});

t.test('restart without a name restarts each device, resize passes the size on as it is', async (t) => {
  const { directory, asked } = await standIn(t, status);
  t.equal((await cli('restart', '--runtime-dir', directory)).code, 0);
  t.equal((await cli('resize', 'a', '2GiB', '--force', '--runtime-dir', directory)).code, 0);
  t.strictSame(asked, [
    'GET /v1/status',
    'POST /v1/devices/scratch/restart',
    'POST /v1/devices/a/resize {"size":"2GiB","force":true}',
  ]);
});

t.test('partitions prints the paths', async (t) => {
  const { directory, asked } = await standIn(t, { partitions: ['/dev/ublkb0p1', '/dev/ublkb0p2'] });
  const out = '/dev/ublkb0p1\n/dev/ublkb0p2';
  t.strictSame(await cli('partitions', 'a', '--runtime-dir', directory), { code: 0, out, err: '' });
  t.strictSame(asked, ['POST /v1/devices/a/partitions']);
});

t.test('reload prints a line for each device, and fails when something would be refused', async (t) => {
  const devices = [
    { device: 'a', action: 'change', changes: ['requestTimeout', 'recovery.window'], reason: null },
    { device: 'b', action: 'refuse', changes: ['queues'], reason: 'queues cannot change' },
    { device: 'c', action: 'add', changes: [], reason: null },
  ];
  const { directory, asked } = await standIn(t, { devices });
  t.strictSame(await cli('reload', '--dry-run', '--runtime-dir', directory), {
    code: 1,
    out: 'change a: requestTimeout, recovery.window\nrefuse b: queues cannot change\nadd c',
    err: 'ublk-supervisor: a reload would be refused',
  });
  t.strictSame(asked, ['POST /v1/reload {"dryRun":true}']);
});

t.test('stop without a name returns once there is no supervisor', async (t) => {
  const gone = await execa(process.execPath, ['-p', 'process.pid'], { extendEnv: false });
  const { directory, asked } = await standIn(t, {
    supervisor: { ...status.supervisor, pid: Number(gone.stdout) },
    devices: [],
  });
  t.strictSame(await cli('stop', '--force', '--runtime-dir', directory), { code: 0, out: '', err: '' });
  t.strictSame(asked, ['GET /v1/status', 'POST /v1/stop {"force":true}']);
});

t.test('what the supervisor refuses is passed on, harmless to a terminal', async (t) => {
  const { directory } = await standIn(
    t,
    { error: { code: 'IN_USE', message: 'device \u001b[2J is mounted\nreally' } },
    409,
  );
  t.strictSame(await cli('del', 'a', '--runtime-dir', directory), {
    code: 1,
    out: '',
    err: 'ublk-supervisor: device \\u001b[2J is mounted\nublk-supervisor: really',
  });
});

t.test('test-backend gives each check a line, and the backend its options with their types', async (t) => {
  const faulty = join(root, 'dist/test/unit/js-backend/faulty-backend.js');
  const good = await cli('test-backend', faulty, 'size=8192');
  t.match(good, { code: 0, err: '', out: /^ok {4}opens: 8K, blocks of 512 bytes, flush, discard, writeZeroes\n/ });
  t.match(good.out, /\n11 passed, 0 failed, 0 skipped$/);
  const bad = await cli('test-backend', faulty, 'size=8192', 'fault=a write of six blocks is lost', '--seed', '7');
  t.match(bad, { code: 1, out: /\nfail {2}random operations: .*\n {6}after 1 operation, with --seed 7:\n {8}queue / });
  t.match(await cli('test-backend', faulty, 'size=8K'), {
    code: 1,
    out: /^fail {2}opens: .*size: expected a number/,
  });
});

t.test('a reader that has had enough ends the output quietly', async (t) => {
  const devices = Array.from({ length: 5000 }, (_none, index) => ({ ...device, name: `d${index}` }));
  const { directory } = await standIn(t, { ...status, devices });
  const command = `${process.execPath} ${main} status --runtime-dir ${directory} | head -1; echo "\${PIPESTATUS[@]}"`;
  const { stdout, stderr } = await execa('bash', ['--norc', '-c', command], {
    extendEnv: false,
    env: { PATH: process.env.PATH },
  });
  t.equal(stderr, '');
  t.equal(stdout, 'ublk-supervisor 0.1.0, pid 42, Linux 6.12.0\n0 0');
});

t.test('doctor gives each check a line, and JSON on request', async (t) => {
  const directory = await shortDirectory(t);
  const { out } = await cli('doctor', '--runtime-dir', directory);
  for (const line of out.split('\n')) t.match(line, /^(ok|warn|fail) +\S.*: \S/);
  t.match(out, 'runtime directory');
  const { checks } = JSON.parse((await cli('doctor', '-J', '--runtime-dir', directory)).out) as { checks: unknown[] };
  t.equal(checks.length, out.split('\n').length);
  t.match(checks[0], { id: 'kernel', status: /ok|warn|fail/, detail: String });
});
