import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { DirectFile } from './direct-file.js';
import { Served, assertNothingLeft, ok, root } from './harness.js';

const MIB = 2 ** 20;
const example = (name: string): string => join(root, 'examples', `${name}-backend.js`);

test('the examples of backends serve, and go on after their processes were killed', async (t) => {
  const content = randomBytes(4 * MIB);
  const server = createServer(({ method, headers }, response) => {
    const [from = 0, to = content.length - 1] = (headers.range ?? '').match(/\d+/g)?.map(Number) ?? [];
    response.writeHead(headers.range === undefined ? 200 : 206, {
      'content-length': to - from + 1,
      'content-range': `bytes ${String(from)}-${String(to)}/${String(content.length)}`,
      etag: '"1"',
    });
    response.end(method === 'HEAD' ? undefined : content.subarray(from, to + 1));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${String((server.address() as AddressInfo).port)}/disk.img`;
  const keyFile = join(await mkdtemp('/tmp/key-'), 'key');
  await writeFile(keyFile, randomBytes(64), { mode: 0o600 });

  const served = await Served.start([]);
  /** One after the other: each opens its backend in one more process beforehand. */
  const add = async (name: string, queues: number, backend: object): Promise<string> => {
    const { status, body } = await served.api('POST', '/v1/devices', { name, queues, backend });
    assert.equal(status, 201, JSON.stringify(body));
    return (await served.untilLive(name)).path ?? '';
  };
  const ram = await add('ram', 2, { type: example('ram'), size: 16 * MIB });
  const http = await add('http', 1, { type: example('http'), url });
  const encrypting = { type: example('encrypting'), keyFile, backend: './ram-backend.js', size: 64 * MIB };
  const secret = await add('secret', 1, encrypting);

  {
    const written = randomBytes(MIB);
    await using disk = await DirectFile.open(ram);
    assert.equal(await disk.write(3 * MIB, written), MIB);
    await ok('mkfs.ext4', ['-q', secret]);
    for (const name of ['ram', 'http', 'secret']) {
      const [first] = (await served.device(name)).queues;
      assert.ok(first?.pid);
      process.kill(first.pid, 'SIGKILL');
      await served.untilLive(name, 1);
    }
    assert.deepEqual(await disk.read(3 * MIB, MIB), written);
    await writeFile('/proc/sys/vm/drop_caches', '3');
    await ok('e2fsck', ['-fn', secret]);
    const image = await ok('sha256sum', [http]);
    await writeFile('/tmp/content', content);
    assert.equal(image.split(' ')[0], (await ok('sha256sum', ['/tmp/content'])).split(' ')[0]);
  }
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);
});
