// kernels: newest
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/supervisor/status.js';
import { Served, assertNothingLeft, ok, run, shell, waitFor, type Finished } from './harness.js';

/** Stores that stop answering for longer than any time-out: their users wait, and that is all. */

const DIRECTORY = '/run/backends';
const SERVER_SOCKET = '/run/backends/server.sock';
const recovery = { maxRestarts: 2, poisonAfter: 1 };
/** Ample for queue processes that boot node on a busy emulated machine. */
const RECOVERY_TIMEOUT_MS = 120_000;
/** Beyond `maxRestarts` and `poisonAfter`. */
const MANY = 4;

/** A RAM disk that asks a server before every request. */
const asking = `import { request } from 'node:http';
const permission = () => new Promise((resolve, reject) => {
  const asked = request({ socketPath: '${SERVER_SOCKET}', agent: false }, (answer) => answer.resume().on('end', resolve));
  asked.on('error', reject).end();
});
export default {
  name: 'asking',
  open(_options, context) {
    const size = 1 << 20;
    const memory = context.sharedMemory('disk', size);
    return {
      size,
      async read(buffer, offset) {
        await permission();
        return memory.copy(buffer, 0, offset, offset + buffer.length);
      },
      async write(buffer, offset) {
        await permission();
        return buffer.copy(memory, offset);
      },
      async flush() {
        await permission();
      },
    };
  },
};
`;
const server = `require('node:http').createServer((_, response) => response.end()).listen('${SERVER_SOCKET}')`;

/** A read, a write, a flush and, if the device can, a discard, each in a process of its own: none shares its wait. */
function use(path: string, { discard }: { discard: boolean }): Promise<Finished[]> {
  return Promise.all([
    run('dd', [`if=${path}`, 'of=/dev/null', 'bs=4k', 'count=1', 'skip=3', 'iflag=direct', 'status=none']),
    run('dd', ['if=/dev/zero', `of=${path}`, 'bs=4k', 'count=1', 'seek=5', 'oflag=direct', 'status=none']),
    run('dd', ['if=/dev/zero', `of=${path}`, 'bs=4k', 'count=1', 'seek=7', 'conv=fsync', 'status=none']),
    ...(discard ? [run('blkdiscard', ['-o', '65536', '-l', '65536', path])] : []),
  ]);
}

function assertUnharmed(finished: readonly Finished[], { quarantine, reason }: DeviceStatus): void {
  for (const { code, stderr } of finished) assert.equal(code, 0, stderr);
  assert.deepEqual([quarantine, reason], [[], null]);
}

test('stores that do not answer', { timeout: 500_000 }, async (t) => {
  await shell(`
    modprobe loop
    modprobe dm_mod
    mkdir -p /mnt/store
    mount -t tmpfs -o size=100M tmpfs /mnt/store
    truncate -s 16M /mnt/store/image
    losetup /dev/loop0 /mnt/store/image
    echo '0 32768 linear /dev/loop0 0' | dmsetup create --noudevsync disk`);
  const answers = (): Promise<unknown> => ok('dmsetup', ['resume', '--noudevsync', 'disk']);
  const stopsAnswering = (): Promise<unknown> => ok('dmsetup', ['suspend', '--noudevsync', '--nolockfs', 'disk']);
  await mkdir(DIRECTORY, { mode: 0o755 });
  await writeFile(`${DIRECTORY}/asking.mjs`, asking, { mode: 0o644 });
  const serving = spawn(process.execPath, ['-e', server], { stdio: 'ignore' });
  await waitFor('the server being there', async () => (await run('test', ['-S', SERVER_SOCKET])).code === 0);
  const served = await Served.start([
    { name: 'stored', requestTimeout: '1s', recovery, backend: { type: 'file', path: '/dev/dm-0' } },
    { name: 'asking', requestTimeout: '3s', recovery, backend: { type: `${DIRECTORY}/asking.mjs` } },
  ]);
  const pathOf = ({ path }: DeviceStatus): string => path ?? assert.fail(served.log);

  await t.test('A11 a native backend waits, with the same processes', async () => {
    const before = await served.device('stored');
    await stopsAnswering();
    const using = use(pathOf(before), { discard: true });
    // Five time-outs of a second each.
    const waiting = /^a .* is unanswered after ([5-9]|[0-9]{2,})\.[0-9] s: the store does not answer$/;
    await waitFor('status saying so', async () => waiting.test((await served.device('stored')).reason ?? ''));
    const { state, generation } = await served.device('stored');
    assert.deepEqual([state, generation], ['live', 1], served.log);
    await answers();
    const finished = await using;
    const after = await waitFor('nothing being waited for', async () => {
      const device = await served.device('stored');
      return device.reason === null && device;
    });
    assertUnharmed(finished, after);
    assert.deepEqual([after.generation, after.queues[0]?.pid], [1, before.queues[0]?.pid]);
    assert.match(served.log, /the store does not answer; it is waited for/);
  });

  await t.test('A11 a native backend that is killed meanwhile comes back when its store does', async () => {
    const before = await served.device('stored');
    await stopsAnswering();
    const using = use(pathOf(before), { discard: true });
    await waitFor('requests waiting', async () => ((await served.device('stored')).queues[0]?.inflight ?? 0) >= 3);
    process.kill(before.queues[0]?.pid ?? assert.fail(), 'SIGKILL');
    await waitFor(
      'the device being degraded',
      async () => (await served.device('stored')).state === 'degraded',
      RECOVERY_TIMEOUT_MS,
    );
    await answers();
    const finished = await using;
    assertUnharmed(finished, await served.untilLive('stored', 1, RECOVERY_TIMEOUT_MS));
  });

  await t.test('A11 a backend in JavaScript is replaced as often as it takes', async () => {
    serving.kill('SIGSTOP');
    const using = use(pathOf(await served.device('asking')), { discard: false });
    await served.untilLive('asking', MANY, RECOVERY_TIMEOUT_MS);
    const { lastExit } = await served.device('asking');
    assert.match(
      lastExit?.reason ?? '',
      /^a .* is unanswered after .* s(, and nothing else was answered|: it computes)/,
    );
    serving.kill('SIGCONT');
    const finished = await using;
    assertUnharmed(finished, await served.untilLive('asking', MANY, RECOVERY_TIMEOUT_MS));
  });

  // Its device is written back.
  assert.equal(await served.terminate(), 0);
  serving.kill('SIGKILL');
  await shell('dmsetup remove --noudevsync disk; losetup -d /dev/loop0; umount /mnt/store');
  await assertNothingLeft(served.runtimeDir);
});
