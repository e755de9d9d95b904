import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import type { DeviceStatus } from '../../src/api/status.js';
import { RunningSupervisor, assertNothingLeft, ok, run, shell, waitFor, type Finished } from './harness.js';

/** Devices whose stores can be made to stop answering. */

const DIRECTORY = '/run/backends';
const SERVER_SOCKET = '/run/backends/server.sock';
const recovery = { maxRestarts: 2, poisonAfter: 1 };

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
const serving = `require('node:http').createServer((_, response) => response.end()).listen('${SERVER_SOCKET}')`;

export interface Stores {
  /** With device `stored`, on a block device, and `asking`, in JavaScript, which asks a server. */
  readonly served: RunningSupervisor;
  readonly server: ChildProcess;
  /** Of the block device; until `answers`. */
  readonly stopsAnswering: () => Promise<unknown>;
  readonly answers: () => Promise<unknown>;
  /** Stops everything; nothing is left. */
  readonly end: () => Promise<void>;
}

export async function startStores(): Promise<Stores> {
  await shell(`
    modprobe loop
    modprobe dm_mod
    mkdir -p /mnt/store
    mount -t tmpfs -o size=100M tmpfs /mnt/store
    truncate -s 16M /mnt/store/image
    losetup /dev/loop0 /mnt/store/image
    echo '0 32768 linear /dev/loop0 0' | dmsetup create --noudevsync disk`);
  await mkdir(DIRECTORY, { mode: 0o755 });
  await writeFile(`${DIRECTORY}/asking.mjs`, asking, { mode: 0o644 });
  const server = spawn(process.execPath, ['-e', serving], { stdio: 'ignore' });
  await waitFor('the server being there', async () => (await run('test', ['-S', SERVER_SOCKET])).code === 0);
  const served = await RunningSupervisor.start([
    { name: 'stored', requestTimeout: '1s', recovery, backend: { type: 'file', path: '/dev/dm-0' } },
    { name: 'asking', requestTimeout: '3s', recovery, backend: { type: `${DIRECTORY}/asking.mjs` } },
  ]);
  return {
    served,
    server,
    answers: () => ok('dmsetup', ['resume', '--noudevsync', 'disk']),
    stopsAnswering: () => ok('dmsetup', ['suspend', '--noudevsync', '--nolockfs', 'disk']),
    end: async () => {
      // Its device is written back.
      assert.equal(await served.terminate(), 0);
      server.kill('SIGKILL');
      await shell('dmsetup remove --noudevsync disk; losetup -d /dev/loop0; umount /mnt/store');
      await assertNothingLeft(served.runtimeDir);
    },
  };
}

/** A read, a write, a flush and, if the device can, a discard, each in a process of its own: none shares its wait. */
export function use(
  path: string,
  { discard, timeoutMs }: { discard: boolean; timeoutMs?: number },
): Promise<Finished[]> {
  const each = [
    ['dd', `if=${path}`, 'of=/dev/null', 'bs=4k', 'count=1', 'skip=3', 'iflag=direct', 'status=none'],
    ['dd', 'if=/dev/zero', `of=${path}`, 'bs=4k', 'count=1', 'seek=5', 'oflag=direct', 'status=none'],
    ['dd', 'if=/dev/zero', `of=${path}`, 'bs=4k', 'count=1', 'seek=7', 'conv=fsync', 'status=none'],
    ...(discard ? [['blkdiscard', '-o', '65536', '-l', '65536', path]] : []),
  ];
  return Promise.all(each.map(([command = '', ...args]) => run(command, args, timeoutMs)));
}

export function assertUnharmed(finished: readonly Finished[], { quarantine, reason }: DeviceStatus): void {
  for (const { code, stderr } of finished) assert.equal(code, 0, stderr);
  assert.deepEqual([quarantine, reason], [[], null]);
}
