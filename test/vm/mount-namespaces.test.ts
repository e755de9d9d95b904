// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants, existsSync, readFileSync, readlinkSync } from 'node:fs';
import { open, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { RunningSupervisor, kernelComplaints, ok, processesNamed, run, shell, waitFor, zygoteOf } from './harness.js';
import { ramData } from './ram-data.js';

/** Mounts of a device where its own queue processes could be the last to have them. */

const devices = ['outside', 'inside', 'last'].map((name, id) => ({
  name,
  id,
  backend: { type: 'ram', size: '16MiB' },
}));

const namespaceOf = (pid: number): string => readlinkSync(`/proc/${pid}/ns/mnt`);
const mountsOf = (pid: number): string => readFileSync(`/proc/${pid}/mountinfo`, 'utf8');

/** Whether somebody has the device mounted, in whatever namespace. */
async function isClaimed(path: string): Promise<boolean> {
  try {
    await (await open(path, constants.O_RDONLY | constants.O_EXCL)).close();
    return false;
  } catch (error) {
    assert.match(String(error), /EBUSY/);
    return true;
  }
}

test('G2 mount namespaces', { timeout: 1_100_000 }, async (t) => {
  // As systemd has it.
  await ok('mount', ['--make-rshared', '/']);
  // The supervisor is in a namespace that others mount in, and that ends with it.
  const served = await RunningSupervisor.start(devices, { under: ['unshare', '--mount', '--propagation', 'private'] });
  const inNamespace = (...args: readonly string[]): Promise<string> =>
    ok('nsenter', ['--mount', `--target=${served.pid}`, ...args]);

  await t.test('queue processes are in one of their own', async () => {
    const [namespace, ...others] = new Set(processesNamed('ublk').map(namespaceOf));
    assert.deepEqual(others, []);
    assert.notEqual(namespace, namespaceOf(served.pid));
    assert.notEqual(namespace, namespaceOf(process.pid));
  });

  await t.test('umount -l in another namespace, with a file open, while queue processes are killed', async () => {
    await ok('mkfs.ext4', ['-q', '/dev/ublkb0']);
    await shell('mkdir -p /mnt/outside');
    const script = `mount /dev/ublkb0 /mnt/outside
      exec 3> /mnt/outside/file
      umount -l /mnt/outside
      : > /run/holds
      until [ -e /run/let-go ]; do
        dd if=/dev/urandom of=/proc/self/fd/3 bs=64k count=1 conv=notrunc,fsync status=none
        sleep 0.1
      done`;
    const holder = spawn('unshare', ['--mount', 'bash', '-ec', script], { stdio: 'inherit' });
    const ended = once(holder, 'exit') as Promise<[number | null]>;
    await waitFor('the file system being held', () => existsSync('/run/holds'));
    for (let kill = 1; kill <= 3; kill++) {
      const pid = (await served.device('outside')).queues[0]?.pid;
      assert.ok(pid);
      process.kill(pid, 'SIGKILL');
      await served.untilLive('outside', kill);
    }
    assert.equal((await served.api('DELETE', '/v1/devices/outside')).status, 409);
    await shell(': > /run/let-go');
    assert.deepEqual((await ended)[0], 0, 'the holder met an error');
    await waitFor('the file system being let go of', async () => !(await isClaimed('/dev/ublkb0')));
    assert.equal((await served.api('DELETE', '/v1/devices/outside')).status, 200);
    await writeFile('/run/outside.img', await ramData('outside'));
    await ok('e2fsck', ['-fn', '/run/outside.img']);
  });

  await t.test(
    'a nursery that starts while the device is mounted does not keep it mounted, nor what is on it',
    async () => {
      await ok('mkfs.ext4', ['-q', '/dev/ublkb1']);
      await shell('mkdir -p "/mnt/in side" /mnt/overlay /mnt/loop /mnt/above; modprobe loop');
      await inNamespace('mount', '/dev/ublkb1', '/mnt/in side');
      const onTop = `cd "/mnt/in side"
      mkdir upper work
      mount -t overlay -o "lowerdir=/usr:/etc,upperdir=$PWD/upper,workdir=$PWD/work" overlay /mnt/overlay
      echo a > /mnt/overlay/file
      truncate -s 8M image
      mkfs.ext4 -q image
      mount -o loop image /mnt/loop
      mkdir /mnt/loop/above
      mount -t overlay -o "lowerdir=/etc:/mnt/loop/above" overlay /mnt/above`;
      await inNamespace('bash', '-ec', onTop);
      const [nursery = assert.fail()] = processesNamed('ublk-nursery');
      process.kill(nursery, 'SIGKILL');
      process.kill(zygoteOf(await served.device('inside')), 'SIGKILL');
      const inside = await served.untilLive('inside', 1, 60_000);
      assert.match(mountsOf(served.pid), /\/dev\/ublkb1 /);
      assert.match(mountsOf(served.pid), / \/mnt\/above /);
      assert.doesNotMatch(mountsOf(zygoteOf(inside)), /\/dev\/ublkb| \/mnt\/(overlay|loop|above) /);
      await inNamespace('umount', '/mnt/above', '/mnt/loop', '/mnt/overlay', '/mnt/in side');
      // What umount detaches a loop device from is let go of a moment later.
      await waitFor('the device being free', async () => !(await isClaimed('/dev/ublkb1')));
      assert.equal((await served.api('DELETE', '/v1/devices/inside')).status, 200);
    },
  );

  await t.test('what ends with the namespace of a mount is not what serves it', async () => {
    await ok('mkfs.ext4', ['-q', '/dev/ublkb2']);
    await inNamespace('mount', '/dev/ublkb2', '/mnt');
    await inNamespace('bash', '-ec', 'head -c 1M /dev/urandom > /mnt/file');
    const zygote = zygoteOf(await served.device('last'));
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    await waitFor('the namespace taking its mount away', async () => !(await isClaimed('/dev/ublkb2')), 60_000);
    assert.equal(processesNamed('ublk/').length, 1);
    assert.equal((await run('e2fsck', ['-fn', '/dev/ublkb2'])).code, 0);
    assert.deepEqual(await kernelComplaints(), []);
    process.kill(zygote, 'SIGKILL');
    await waitFor('everything ending', () => processesNamed('ublk').length === 0);
  });
});
