// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import {
  RunningSupervisor,
  assertNothingLeft,
  hasEnded,
  processesNamed,
  shell,
  supervisorCommand,
  waitFor,
} from './harness.js';

/** A file system that does not answer, be it for hours, concerns the devices on it alone, however many they are. */

const runtimeDir = '/run/hung-stores';
/** More than libuv has threads in a process that does not ask for more. */
const HUNG = Array.from({ length: 6 }, (_, index) => `hung${index}`);
const MIB = 2 ** 20;
const recovery = { maxRestarts: 1000 };
const onFuse = (name: string): object => ({
  name,
  recovery,
  backend: { type: 'file', path: join('/mnt/fuse', `${name}.img`), size: MIB },
});
const local = { name: 'local', recovery, backend: { type: 'file', path: '/run/local.img', size: MIB } };
const devices = [local, ...HUNG.map(onFuse)];

test('file systems that hang', { timeout: 1_200_000 }, async (t) => {
  // That somebody waits for so long is worth a warning of the kernel's; here it is what is wanted.
  await shell('echo 0 > /proc/sys/kernel/hung_task_timeout_secs');
  await shell(`modprobe fuse; modprobe loop; mkdir -p /mnt/fuse /mnt/frozen
    truncate -s 64M /run/fuse.img /run/frozen.img; mkfs.ext4 -q /run/fuse.img; mkfs.ext4 -q /run/frozen.img
    mount -o loop /run/frozen.img /mnt/frozen`);
  await shell('fuse2fs /run/fuse.img /mnt/fuse');
  const [server] = processesNamed('fuse2fs');
  assert.ok(server !== undefined);
  const hang = (): void => {
    process.kill(server, 'SIGSTOP');
  };
  const answer = (): void => {
    process.kill(server, 'SIGCONT');
  };
  const content = new Map(devices.map((device) => [(device as { name: string }).name, randomBytes(MIB)]));
  let served = await RunningSupervisor.start(devices, { runtimeDir });
  const pathOf = async (name: string): Promise<string> => (await served.device(name)).path ?? assert.fail('no path');
  const states = async (names: readonly string[]): Promise<string[]> => {
    const { devices: all } = await served.status();
    return all.filter(({ name }) => names.includes(name)).map(({ state }) => state);
  };
  const read = async (name: string): Promise<Buffer> => {
    await using file = await DirectFile.openReadOnly(await pathOf(name));
    return await file.read(0, MIB);
  };
  for (const [name, data] of content) {
    await using file = await DirectFile.open(await pathOf(name));
    await file.write(0, data);
  }
  const assertIntact = async (): Promise<void> => {
    for (const [name, data] of content) assert.ok(data.equals(await read(name)), `${name} has other data`);
  };
  /** Kills their queue processes; their names go with the status from before. */
  const killQueues = async (names: readonly string[]): Promise<void> => {
    for (const name of names) process.kill((await served.device(name)).queues[0]?.pid ?? 0, 'SIGKILL');
  };
  /** What has to work beside it. */
  const assertOthersWork = async (): Promise<void> => {
    const { generation } = await served.device('local');
    await killQueues(['local']);
    await served.untilGeneration('local', generation + 1);
    await served.add({ name: 'other', backend: { type: 'file', path: '/run/other.img', size: MIB } });
    await served.remove('other');
    await shell('rm /run/other.img');
  };

  await t.test('E6 recoveries wait for it, and nobody else does', async () => {
    hang();
    await killQueues(HUNG);
    const reads = HUNG.map(read);
    const degraded = async (): Promise<boolean> => (await states(HUNG)).every((state) => state === 'degraded');
    await waitFor('their being degraded', degraded, 120_000);
    const { reason } = await served.device('hung0');
    assert.match(reason ?? '', /checking the backend of device hung0 failed: it takes longer than 30 s/);
    await assertOthersWork();
    answer();
    for (const name of HUNG) await served.untilLive(name, 1, 120_000);
    for (const [index, data] of (await Promise.all(reads)).entries()) {
      assert.ok(content.get(HUNG[index] ?? '')?.equals(data));
    }
  });

  await t.test('E6 a supervisor that dies meanwhile has a successor', async () => {
    hang();
    const servers = async (): Promise<unknown> => {
      const { devices: all } = await served.status();
      return new Map(all.map(({ name, queues }) => [name, queues.map(({ pid }) => pid)]));
    };
    const before = await servers();
    const { pid } = served;
    process.kill(pid, 'SIGKILL');
    await served.exit;
    served = await RunningSupervisor.start(devices, { runtimeDir });
    assert.deepEqual(await servers(), before);
    await killQueues(HUNG);
    await assertOthersWork();
    answer();
    for (const name of HUNG) await served.untilGeneration(name, 3, 120_000);
    await assertIntact();
  });

  await t.test('E6 who opens stores may die, or stop', async () => {
    for (const signal of ['SIGKILL', 'SIGSTOP'] as const) {
      // That of the supervisor before had to wait as its files did.
      const opener = await waitFor('there being one', () => {
        const [one, ...more] = processesNamed('ublk-stores');
        return more.length === 0 && one;
      });
      process.kill(opener, signal);
      await assertOthersWork();
      await waitFor('its end', () => hasEnded(opener), 60_000);
      await assertIntact();
    }
  });

  await t.test('E6 what hangs when it is opened can be given up, and does not keep the supervisor', async () => {
    await truncate('/mnt/frozen/image', 0).catch(() => writeFile('/mnt/frozen/image', ''));
    await shell('fsfreeze --freeze /mnt/frozen');
    const frozen = HUNG.map((name) => `frozen-${name}`);
    const adding = frozen.map((name, index) => {
      const path = `/mnt/frozen/${index === 0 ? 'image' : name}`;
      return served.api('POST', '/v1/devices', { name, backend: { type: 'file', path, size: MIB } });
    });
    await waitFor('their being opened', async () => (await states(frozen)).length === frozen.length);
    await assertOthersWork();
    for (const name of frozen) {
      assert.equal((await served.api('DELETE', `/v1/devices/${name}?force=true`)).status, 200);
    }
    for (const { status } of await Promise.all(adding)) assert.notEqual(status, 201);
    // It is still frozen.
    hang();
    await writeFile('/run/hung.json', JSON.stringify({ devices }));
    const { code, stderr } = await supervisorCommand('check', '/run/hung.json');
    assert.equal(code, 78, stderr);
    const lines = stderr.split('\n').map((line) => /devices\[(\d)\]\.backend: (looking at|opening)/.exec(line)?.[0]);
    assert.deepEqual(
      lines,
      HUNG.map((_name, index) => `devices[${index + 1}].backend: looking at`),
    );
    assert.equal((await served.command('stop', 'hung0', '--force')).code, 0);
    process.kill(served.pid, 'SIGTERM');
    await served.logs(/"stopping"/);
    process.kill(served.pid, 'SIGTERM');
    assert.equal(await served.exit, 0);
  });

  await t.test('E6 the next supervisor serves what answers', async () => {
    served = await RunningSupervisor.start([local], { runtimeDir });
    assert.ok(content.get('local')?.equals(await read('local')));
    answer();
    await shell('fsfreeze --unfreeze /mnt/frozen');
    for (const name of HUNG) await served.add(onFuse(name));
    await assertIntact();
    assert.equal(await served.terminate(), 0);
    // Of devices that were stopped by force.
    await assertNothingLeft(runtimeDir, /I\/O error, dev ublkb/);
    await shell('umount /mnt/frozen /mnt/fuse');
  });
});
