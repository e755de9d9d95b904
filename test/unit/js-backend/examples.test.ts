import { randomBytes } from 'node:crypto';
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import type { BackendContext, BackendDefinition, BackendInstance } from '../../../src/js-backend/define.js';
import { loadConfig } from '../../../src/config/load.js';
import { zipArchive } from '../backends/zip/zip-archive.js';

/** The examples of backends, checked as their author would. */

const root = fileURLToPath(new URL('../../../../', import.meta.url));
const main = join(root, 'dist/programs/ublk-supervisor.js');

/** The environment is bare: without tap's loaders a child starts in a fifth of the time. */
async function testBackend(
  module: string,
  ...options: string[]
): Promise<{ exitCode: number | undefined; all: string }> {
  const { exitCode, all } = await execa(process.execPath, [main, 'test-backend', module, ...options], {
    cwd: join(root, 'examples'),
    reject: false,
    all: true,
    extendEnv: false,
  });
  return { exitCode, all };
}

/** Serves `content` by ranges, in its next version after `changeAfter` of them. */
async function fileServer(t: Test, content: Buffer, changeAfter = Infinity): Promise<string> {
  let ranges = 0;
  const server = createServer((request, response) => {
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    const [from, to] = range ? [Number(range[1]), Number(range[2])] : [0, content.length - 1];
    if (range) ranges++;
    const etag = ranges > changeAfter ? '"2"' : '"1"';
    const length = { 'content-length': to - from + 1, etag };
    if (range) {
      response.writeHead(206, {
        ...length,
        'content-range': `bytes ${from}-${to}/${content.length}`,
      });
    } else response.writeHead(200, length);
    response.end(request.method === 'HEAD' ? undefined : content.subarray(from, to + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return `url=http://127.0.0.1:${(server.address() as AddressInfo).port}/disk.img`;
}

// Each command has some ten threads, on machines that may have other things to do.
t.setTimeout(180_000);

t.test('ram-backend.js', async (t) => {
  t.match(await testBackend('./ram-backend.js', 'size=4194304'), { exitCode: 0, all: / 0 failed, / });
  const lines = readFileSync(join(root, 'examples/ram-backend.js'), 'utf8').split('\n').length - 1;
  t.ok(lines <= 30, `${lines} lines`);
});

t.test('http-backend.js', async (t) => {
  const content = randomBytes(3 * 2 ** 20 + 512);
  t.match(await testBackend('./http-backend.js', await fileServer(t, content)), {
    exitCode: 0,
    all: /^ok {4}opens: 3M, blocks of 512 bytes, read-only\n.* 0 failed, /s,
  });
  t.match(await testBackend('./http-backend.js', await fileServer(t, content, 5)), {
    exitCode: 1,
    all: /failed: http:.* has changed: "1" is now "2"\n/,
  });
  t.match(await testBackend('./http-backend.js', await fileServer(t, randomBytes(5000))), {
    exitCode: 1,
    all: /size 5000; expected a multiple of 512/,
  });
});

t.test('encrypting-backend.js', async (t) => {
  const keyFile = join(t.testdir(), 'key');
  writeFileSync(keyFile, randomBytes(64), { mode: 0o600 });
  const over = (backend: object): string[] => [`keyFile=${keyFile}`, `backend=${JSON.stringify(backend)}`];
  const size = 4 * 2 ** 20;
  const zip = join(t.testdirName, 'disk.zip');
  writeFileSync(zip, zipArchive([{ name: 'disk', data: randomBytes(size) }]));
  for (const backend of [
    { type: './ram-backend.js', size },
    { type: 'ram', size },
    { type: 'file', path: join(t.testdirName, 'disk.img'), size },
    { type: 'zip', path: zip },
  ]) {
    t.match(
      await testBackend('./encrypting-backend.js', ...over(backend)),
      { exitCode: 0, all: / 0 failed, / },
      backend.type,
    );
  }
  const missing = over({ type: 'file', path: join(t.testdirName, 'missing.img') });
  t.match(await testBackend('./encrypting-backend.js', ...missing), { exitCode: 1, all: /there is no such file/ });
  const wrong = over({ type: 'ram', size, sise: 1 });
  t.match(await testBackend('./encrypting-backend.js', ...wrong), { exitCode: 1, all: /unknown key "sise"/ });
  chmodSync(keyFile, 0o640);
  const ram = over({ type: 'ram', size });
  t.match(await testBackend('./encrypting-backend.js', ...ram), { exitCode: 1, all: /chmod 600/ });
});

t.test('encrypting-backend.js stores nothing in the clear', async (t) => {
  const keyFile = join(t.testdir(), 'key');
  writeFileSync(keyFile, randomBytes(64), { mode: 0o600 });
  const module = (await import(join(root, 'examples/encrypting-backend.js'))) as { default: BackendDefinition };
  const stored = Buffer.alloc(8192);
  const options = { keyFile, backend: { type: 'ram', size: stored.length } };
  const below: BackendInstance = {
    size: stored.length,
    read: (buffer, offset) => stored.copy(buffer, 0, offset, offset + buffer.length),
    write: (buffer, offset) => buffer.copy(stored, offset),
  };
  const context = { open: () => Promise.resolve(below), resolve } as unknown as BackendContext;
  const instance = await module.default.open(options, context);
  const clear = Buffer.alloc(1024, 'text ');
  t.equal(await instance.write?.(clear, 512, { fua: false }), 1024);
  const sectors = [0, 1, 2, 3].map((sector) => stored.toString('latin1', sector * 512, (sector + 1) * 512));
  t.equal(new Set(sectors).size, 3, 'the same text is something else in another sector; the rest is untouched');
  t.notMatch(sectors.join(''), /text/);
  const read = Buffer.alloc(1024);
  await instance.read(read, 512);
  t.strictSame(read, clear);
});

t.test('their configurations are valid', async (t) => {
  for (const name of ['ram', 'http', 'encrypting']) {
    const { devices } = await loadConfig(join(root, `examples/${name}-backend.json`));
    t.match(devices[0]?.backend, { type: 'module', path: join(root, `examples/${name}-backend.js`) });
  }
});
