// kernels: newest
import { copyFile, mkdir } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { IMAGE_BYTES, makeSample, testBackends } from './device-suite.js';
import { root, shell, trust } from './harness.js';
import { seed } from './random.js';

/** The same tests of a device over backends in JavaScript: the examples, and one that answers late. */

/** Small: they are slow in an emulated guest. async-ram-backend.js has the same. */
const SIZE = 4 * 2 ** 20 + 4096;

const example = (name: string): string => join(root, 'examples', `${name}-backend.js`);

test('every backend in JavaScript', { timeout: 1_100_000 }, async (t) => {
  t.diagnostic(`seed ${seed}`);
  await mkdir('/run/backends', { mode: 0o755 });
  await copyFile(join(root, 'test/vm/async-ram-backend.js'), '/run/backends/async-ram.mjs');
  await shell('umask 077; head -c 64 /dev/urandom > /run/key');
  for (const name of ['ram', 'encrypting', 'http']) await trust(example(name));
  const sample = await makeSample();
  const server = createServer(({ method, headers }, response) => {
    const [from = 0, to = IMAGE_BYTES - 1] = (headers.range ?? '').match(/\d+/g)?.map(Number) ?? [];
    response.writeHead(headers.range === undefined ? 200 : 206, {
      'content-length': to - from + 1,
      'content-range': `bytes ${from}-${to}/${IMAGE_BYTES}`,
      etag: '"1"',
    });
    response.end(method === 'HEAD' ? undefined : sample.image.subarray(from, to + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/disk.img`;

  const usual = { size: SIZE, kills: 1 };
  const plain = { ...usual, writeCache: false, discard: false };
  const rows = [
    { name: 'ram', backend: { type: example('ram'), size: SIZE }, expected: { ...plain, blockSize: 512 } },
    { name: 'async-ram', backend: { type: '/run/backends/async-ram.mjs' }, expected: usual },
    {
      name: 'encrypting',
      settings: { queues: 1, directory: '/run' },
      // Over one without discard: what was discarded below it is noise, which the tests do not expect.
      backend: { type: example('encrypting'), keyFile: './key', backend: { type: example('ram'), size: SIZE } },
      expected: { ...plain, writeZeroes: false },
    },
    {
      name: 'http',
      settings: { queues: 1 },
      backend: { type: example('http'), url },
      expected: { ...plain, size: IMAGE_BYTES, readOnly: true, writeZeroes: false },
    },
  ];
  await testBackends(t, rows, sample);
});
