// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { DATA_OFFSET } from '../../backends/ram/ram-file.js';
import { ramFile } from './ram-data.js';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { open, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import type { DeviceStatus } from '../../src/api/status.js';
import { Cgroup } from './cgroup.js';
import { RunningSupervisor, hasEnded, ok, run, shell, waitFor } from './harness.js';
import { Oracles, Registers, assertCause } from './oracles.js';

/** What goes on around a device: processes that stand still, clocks that jump, a kernel that is being reconfigured. */

const HANG_MS = 3_000;
const settings = { requestTimeout: `${HANG_MS}ms`, recovery: { maxRestarts: 1000 } };
/** Not earlier than HANG_MS; how much later is up to the machine. */
const LONG_ENOUGH = '([3-9]|[0-9]{2,})\\.[0-9] s';
const hang = new RegExp(`^(a .* is unanswered after|it gave no sign of life for) ${LONG_ENOUGH}`);
const stopped = new RegExp(`^it has been stopped, by a signal or a debugger, for ${LONG_ENOUGH}`);

const pidsOf = ({ queues }: DeviceStatus): number[] => queues.flatMap(({ pid }) => pid ?? []);

test('a device in a restless machine', { timeout: 1_100_000 }, async (t) => {
  await shell(`
    modprobe loop
    mkdir -p /mnt/store /mnt/image /mnt/files
    mount -t tmpfs -o size=100M tmpfs /mnt/image
    truncate -s 48M /mnt/image/ext4
    mkfs.ext4 -q /mnt/image/ext4
    mount -o loop /mnt/image/ext4 /mnt/store`);
  const served = await RunningSupervisor.start([
    { name: 'witness', backend: { type: 'ram', size: '16MiB' } },
    { name: 'checked', queues: 2, ...settings, backend: { type: 'ram', size: '16MiB' } },
    { name: 'stored', ...settings, backend: { type: 'file', path: '/mnt/store/file', size: '8MiB' } },
  ]);
  const pathOf = async (name: string): Promise<string> => (await served.device(name)).path ?? assert.fail(served.log);
  const oracles = await Oracles.around(served, {
    checked: ['checked'],
    witness: 'witness',
    // The write that was under way when a device was stopped by force.
    expected: /I\/O error(, | on )dev ublkb31,/,
  });
  const generationOf = async (): Promise<number> => (await served.device('checked')).generation;

  /** Whatever `disturb` does, the same processes serve on. */
  async function unaffected(disturb: () => Promise<unknown>): Promise<void> {
    const before = await served.device('checked');
    await disturb();
    await oracles.hold();
    const { generation, queues } = await served.device('checked');
    assert.deepEqual([generation, queues.map(({ pid }) => pid)], [before.generation, pidsOf(before)], served.log);
  }

  await t.test('A7 what looks like a partition table is not read, let alone scanned for', async () => {
    const table = Buffer.alloc(512);
    // One Linux partition of 1 MiB at 1 MiB.
    table[450] = 0x83;
    table.writeUInt32LE(2048, 454);
    table.writeUInt32LE(2048, 458);
    table.writeUInt16LE(0xaa55, 510);
    {
      await using file = await open(ramFile('parted'), 'w', 0o600);
      await file.truncate(DATA_OFFSET + 16 * 2 ** 20);
      // The bit that says that the first page was written.
      await file.write(Buffer.from([1]), 0, 1, 0);
      await file.write(table, 0, table.length, DATA_OFFSET);
    }
    const { id, queues } = await served.add({ name: 'parted', id: 30, backend: { type: 'ram', size: '16MiB' } });
    assert.deepEqual([id, queues[0]?.read.count], [30, 0], 'somebody read the device');
    assert.equal((await readFile('/sys/block/ublkb30/partscan', 'utf8')).trim(), '0');
    assert.ok(!existsSync('/sys/block/ublkb30/ublkb30p1'));
    await served.remove('parted');
  });

  await t.test('A8 a queue process that is stopped is ended by the watchdog', async () => {
    const before = await served.device('checked');
    process.kill(pidsOf(before)[1] ?? assert.fail(), 'SIGSTOP');
    const after = await served.untilGeneration('checked', before.generation + 1);
    assertCause(after, { signal: 'SIGKILL', reason: new RegExp(`${hang.source}|${stopped.source}`) });
    await oracles.hold();
  });

  await t.test('A8 so is one that only a flush waits for', async () => {
    const before = await served.device('stored');
    const file = await open(before.path ?? '', 'r+');
    await file.write(Buffer.alloc(4096, 1), 0, 4096, 0);
    await file.datasync();
    process.kill(pidsOf(before)[0] ?? assert.fail(), 'SIGSTOP');
    const flushing = run('sync', ['-d', before.path ?? '']);
    const after = await served.untilGeneration('stored', before.generation + 1);
    await file.close();
    assertCause(after, { signal: 'SIGKILL', reason: stopped });
    assert.equal((await flushing).code, 0);
  });

  await t.test('E5 a client that was killed waits no longer than for the end of the generation', async () => {
    const before = await served.device('stored');
    process.kill(pidsOf(before)[0] ?? assert.fail(), 'SIGSTOP');
    const options = [`of=${before.path ?? ''}`, 'if=/dev/zero', 'bs=4k', 'count=1', 'oflag=direct', 'status=none'];
    const client = spawn('dd', options, { stdio: 'ignore' });
    const pid = client.pid ?? assert.fail('dd did not start');
    const inKernel = async (): Promise<boolean> =>
      (await readFile(`/proc/${pid}/stack`, 'utf8')).includes('blkdev_write_iter');
    await waitFor('the client waiting', inKernel);
    client.kill('SIGKILL');
    assert.ok(!hasEnded(pid), 'the client did not wait for the device');
    await served.untilGeneration('stored', before.generation + 1);
    await waitFor('the client ending', () => hasEnded(pid));
    await served.command('status');
  });

  await t.test('A9 a supervisor that was stopped for longer than the time-out ends nobody', () =>
    unaffected(async () => {
      process.kill(served.pid, 'SIGSTOP');
      await setTimeout(1.5 * HANG_MS);
      process.kill(served.pid, 'SIGCONT');
      await setTimeout(HANG_MS);
    }),
  );

  await t.test('A9 nor does a clock that jumps', () =>
    unaffected(async () => {
      // The watchdog looks four times a time-out, and has to see a hang twice.
      for (const jump of ['+1 day', '-2 days', '+1 day']) {
        await ok('date', ['-s', jump]);
        await setTimeout(HANG_MS / 2);
      }
    }),
  );

  await t.test('A10 a queue process in uninterruptible sleep is reported, and goes on after the thaw', async () => {
    const registers = await Registers.on(await served.device('stored'));
    const { id, generation, queues } = await served.device('stored');
    await ok('fsfreeze', ['--freeze', '/mnt/store']);
    try {
      const waits = /^a write .*: the store does not answer$/;
      await waitFor('the device being waited for', async () =>
        waits.test((await served.device('stored')).reason ?? ''),
      );
      process.kill(queues[0]?.pid ?? assert.fail(), 'SIGKILL');
      const { reason } = await waitFor('the device being reported', async () => {
        const device = await served.device('stored');
        return device.state === 'degraded' && device;
      });
      assert.match(reason ?? '', /ending queue process [0-9]+ failed: it is in uninterruptible sleep; free what/);
      // STOP_DEV or DEL_DEV would take ADD_DEV of every other device along.
      const { status, body } = await served.api('DELETE', '/v1/devices/stored?force=true');
      assert.ok(status >= 400, JSON.stringify(body));
      assert.ok(existsSync(`/dev/ublkb${String(id)}`));
      await served.add({ name: 'other', backend: { type: 'null', size: '16MiB' } });
      await served.remove('other');
      await oracles.hold();
    } finally {
      await ok('fsfreeze', ['--unfreeze', '/mnt/store']);
    }
    await served.untilGeneration('stored', generation + 1);
    await registers.progress();
    await registers.end();
  });

  await t.test('D5 a forced stop of a device whose queue process is stopped ends all the same', async () => {
    await served.add({ name: 'stopped', id: 31, ...settings, backend: { type: 'ram', size: '16MiB' } });
    const device = await served.device('stopped');
    const file = await open(device.path ?? '', 'r+');
    await file.write(Buffer.alloc(4096, 1), 0, 4096, 0);
    process.kill(pidsOf(device)[0] ?? assert.fail(), 'SIGSTOP');
    const stopping = served.api('DELETE', '/v1/devices/stopped?force=true&data=remove');
    await served.add({ name: 'other', backend: { type: 'null', size: '16MiB' } });
    await served.remove('other');
    await oracles.hold();
    assert.equal((await stopping).status, 200, served.log);
    await file.close();
  });

  await t.test('C4 a log that nobody reads, or can, keeps nobody waiting', async () => {
    await served.withLogStuck(async () => {
      // Far more than a socket or a pipe takes.
      for (let dump = 0; dump < 400; dump++) {
        process.kill(served.pid, 'SIGUSR2');
        // Signals that arrive at once count as one.
        if (dump % 20 === 0) await served.status();
      }
      const { generation, queues } = await served.device('checked');
      process.kill(queues[0]?.pid ?? assert.fail(), 'SIGKILL');
      await served.untilGeneration('checked', generation + 1);
      await oracles.hold();
    });
  });

  await t.test('G1 a CPU goes and comes back', () =>
    unaffected(async () => {
      const cpu = '/sys/devices/system/cpu/cpu1/online';
      await writeFile(cpu, '0');
      await oracles.hold();
      await writeFile(cpu, '1');
    }),
  );

  await t.test('G1 the I/O scheduler changes', () =>
    unaffected(async () => {
      const [, disk] = /([^/]+)$/.exec(await pathOf('checked')) ?? [];
      const scheduler = `/sys/block/${disk ?? ''}/queue/scheduler`;
      const known = (await readFile(scheduler, 'utf8')).trim().replace(/[[\]]/g, '').split(' ');
      assert.ok(known.length > 0);
      for (const name of [...known, 'none']) {
        await writeFile(scheduler, name);
        await oracles.hold();
      }
    }),
  );

  await t.test('G1 caches are dropped', () => unaffected(() => shell('sync; echo 3 > /proc/sys/vm/drop_caches')));

  await t.test('G1 the module cannot be unloaded', () =>
    unaffected(async () => {
      assert.notEqual((await run('rmmod', ['ublk_drv'])).code, 0, 'the driver went');
    }),
  );

  await t.test('G1 a cgroup that is frozen counts as a hang, and can be ended', async () => {
    const group = await Cgroup.make('frozen');
    const before = await served.device('checked');
    for (const pid of pidsOf(before)) await group.add(pid);
    await group.set('cgroup.freeze', '1');
    const after = await served.untilGeneration('checked', before.generation + 1);
    assertCause(after, { signal: 'SIGKILL', reason: hang });
    await group.remove();
    await oracles.hold();
  });

  await t.test('G2 a file system that is unmounted lazily, and one in another namespace, go on', async () => {
    const device = await served.add({ name: 'lazy', ...settings, backend: { type: 'ram', size: '16MiB' } });
    await ok('mkfs.ext4', ['-q', device.path ?? '']);
    await ok('mount', [device.path ?? '', '/mnt/files']);
    const file = await open('/mnt/files/file', 'w+');
    await ok('umount', ['-l', '/mnt/files']);
    process.kill(pidsOf(device)[0] ?? assert.fail(), 'SIGKILL');
    await file.write('still here');
    await file.sync();
    await served.untilGeneration('lazy', 2);
    assert.equal((await served.api('DELETE', '/v1/devices/lazy')).status, 409, 'a mount that nobody sees is none');
    await file.close();
    await waitFor('the file system going', async () => (await run('e2fsck', ['-fn', device.path ?? ''])).code === 0);
    await served.remove('lazy');
  });

  assert.ok((await generationOf()) >= 4);
  const reports = await oracles.end();
  t.diagnostic(`registers: ${JSON.stringify(reports)}`);
});
