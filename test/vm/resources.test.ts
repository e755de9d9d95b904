// run: full
// kernels: newest
// guest: --disk 512M --timeout 2400
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { ublkDeviceInfo } from '../../src/native/addon/system.js';
import type { DeviceStatus } from '../../src/api/status.js';
import { Cgroup } from './cgroup.js';
import { RunningSupervisor, ok, processesNamed, root, run, shell, waitFor, zygoteOf } from './harness.js';
import { Oracles, assertCause } from './oracles.js';

/** Too little memory, too few files, processes or rings: what is there goes on, what is asked for is refused by name. */

const recovery = { maxRestarts: 1000 };
/** A JavaScript backend boots node, on a busy emulated machine. */
const RECOVERY_TIMEOUT_MS = 120_000;
/** PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets. */
const IO_FLUSHER = 0x180000;

const MIB = 2 ** 20;

/** UBLK_S_DEV_QUIESCED */
const QUIESCED = 2;

const pidsOf = ({ queues }: DeviceStatus): number[] => queues.flatMap(({ pid }) => pid ?? []);

const flagsOf = (task: string): number => {
  const stat = readFileSync(`${task}/stat`, 'utf8');
  return Number(stat.slice(stat.lastIndexOf(')')).split(' ')[7]);
};

const openFiles = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** Takes anonymous memory, and writes to all of it more than once. */
const hog = (mebibytes: number): string =>
  `dd if=/dev/zero of=/dev/null bs=${mebibytes}M count=3 iflag=fullblock status=none`;

/** Runs a script inside of a control group. */
const inGroup = (group: Cgroup, script: string) =>
  run('bash', ['-ec', `echo 0 > ${group.path}/cgroup.procs; ${script}`], 300_000);

test('a device in a machine that is short of something', { timeout: 2_300_000 }, async (t) => {
  await mkdir('/run/backends');
  await copyFile(join(root, 'test/vm/async-ram-backend.js'), '/run/backends/async-ram.mjs');
  await shell(`
    mkdir -p /mnt/disk /mnt/files
    mkfs.ext4 -q /dev/vda
    mount /dev/vda /mnt/disk
    fallocate -l 128M /mnt/disk/swap
    chmod 600 /mnt/disk/swap
    mkswap -q /mnt/disk/swap
    swapon /mnt/disk/swap
    head -c 1M /dev/urandom > /run/noise`);
  const served = await RunningSupervisor.start([
    { name: 'witness', backend: { type: 'ram', size: '16MiB' } },
    { name: 'native', queues: 2, recovery, backend: { type: 'ram', size: '16MiB' } },
    { name: 'script', queues: 1, recovery, backend: { type: '/run/backends/async-ram.mjs' } },
    { name: 'ram', recovery, backend: { type: 'ram', size: '24MiB' } },
    { name: 'stored', recovery, backend: { type: 'file', path: '/mnt/disk/store', size: '24MiB' } },
    { name: 'javascript', recovery, backend: { type: join(root, 'examples/ram-backend.js'), size: 24 * MIB } },
  ]);
  const oracles = await Oracles.around(served, {
    checked: ['native', 'script'],
    witness: 'witness',
    // Of who ran out of memory. What else traces calls has a line before it that says what is wrong.
    expected: /Call Trace:$/,
  });
  const killOne = async (name: string): Promise<number> => {
    const device = await served.device(name);
    process.kill(pidsOf(device)[0] ?? assert.fail(), 'SIGKILL');
    return device.generation;
  };

  await t.test('D2 no thread of a queue process waits for memory that it is itself asked to write back', async () => {
    for (const { name, queues } of (await served.status()).devices) {
      for (const { pid } of queues) {
        const proc = `/proc/${String(pid)}`;
        for (const task of readdirSync(`${proc}/task`)) {
          const flags = flagsOf(`${proc}/task/${task}`);
          assert.equal(flags & IO_FLUSHER, IO_FLUSHER, `task ${task} of ${name} is no I/O flusher`);
        }
        const locked = /^VmLck:\s+([0-9]+) kB$/m.exec(readFileSync(`${proc}/status`, 'utf8'))?.[1];
        assert.ok(Number(locked) > 0, `${name} has no locked memory`);
        assert.equal(readFileSync(`${proc}/oom_score_adj`, 'utf8').trim(), '-1000');
      }
    }
  });

  await t.test(
    'D2 nor does any thread of the supervisor, the nursery or a zygote, on whom a recovery waits',
    async () => {
      const forked = [...processesNamed('ublk-nursery'), ...processesNamed('ublk-zygote')];
      assert.ok(forked.length > 1);
      for (const pid of [served.pid, ...forked]) {
        const tasks = readdirSync(`/proc/${pid}/task`).map((task) => `/proc/${pid}/task/${task}`);
        // Node's thread that waits for a debugger blocks every signal but the two of the C library, and does nothing else. The kernel's
        // workers for io_uring, which are tasks of ours, block those too.
        const others = tasks.filter((task) => !/^SigBlk:\s*fffffffe/m.test(readFileSync(`${task}/status`, 'utf8')));
        assert.ok(
          tasks.length - others.length <= 1,
          tasks.map((task) => readFileSync(`${task}/status`, 'utf8')).join(),
        );
        for (const task of others) assert.equal(flagsOf(task) & IO_FLUSHER, IO_FLUSHER, `${task} is no I/O flusher`);
      }
    },
  );

  for (const name of ['ram', 'stored', 'javascript']) {
    await t.test(`D2 dirty pages of ext4 on ${name} are written back in a group that is out of memory`, async () => {
      const device = await served.device(name);
      await shell(`mkfs.ext4 -q ${device.path ?? ''}; mount ${device.path ?? ''} /mnt/files`);
      const group = await Cgroup.make('tight', { 'memory.max': '12M' });
      // Whoever writes back has no more than who is to be freed of dirty pages. A RAM disk's own memory would be in it,
      // and V8 needs more.
      if (name === 'stored') for (const pid of pidsOf(device)) await group.add(pid);
      const { code, stderr } = await inGroup(
        group,
        `(${hog(16)}) & hog=$!
        for i in 1 2; do cp /run/noise /mnt/files/$i; done
        wait $hog
        sync -f /mnt/files
        for i in 1 2; do dd if=/mnt/files/$i bs=1M iflag=direct status=none | cmp - /run/noise; done`,
      );
      assert.equal(code, 0, stderr);
      assert.ok((await group.counter('memory.stat', 'pgsteal')) > 0, 'nobody was short of memory');
      assert.equal(await group.counter('memory.events', 'oom_kill'), 0);
      await shell('umount /mnt/files');
      await ok('e2fsck', ['-fn', device.path ?? '']);
      await group.remove();
      assert.deepEqual(pidsOf(await served.device(name)), pidsOf(device));
      await oracles.hold();
    });
  }

  await t.test('D2 a device is recovered in a group that has to write to it to be given memory', async () => {
    const device = await served.device('stored');
    await shell(`mkfs.ext4 -qF ${device.path ?? ''}; mount ${device.path ?? ''} /mnt/files`);
    const group = await Cgroup.make('squeezed', { 'memory.max': '24M' });
    const zygotes = processesNamed('ublk-zygote');
    // When nothing can be freed at once somebody is ended, which is to be whoever takes memory, and begins again.
    const spared = '/proc/self/oom_score_adj';
    for (const pid of [served.pid, ...zygotes]) await writeFile(`/proc/${pid}/oom_score_adj`, '-1000');
    for (const pid of [served.pid, ...zygotes, ...pidsOf(device)]) await group.add(pid);
    const stop = '/run/squeezed';
    const writing = inGroup(
      group,
      `echo -1000 > ${spared}
      until test -e ${stop}; do (echo 0 > ${spared}; exec ${hog(32)}) || true; done & hog=$!
      until test -e ${stop}; do cp /run/noise /mnt/files/noise; cp /mnt/files/noise /mnt/files/copy; done
      wait $hog
      sync -f /mnt/files
      cmp /mnt/files/copy /run/noise`,
    );
    await waitFor('something being written', () => existsSync('/mnt/files/copy'), RECOVERY_TIMEOUT_MS);
    for (let round = 0; round < 5; round++) {
      const generation = await killOne('stored');
      await served.untilGeneration('stored', generation + 1, RECOVERY_TIMEOUT_MS);
      await oracles.hold();
    }
    await writeFile(stop, '');
    const { code, stderr } = await writing;
    assert.equal(code, 0, stderr);
    assert.ok((await group.counter('memory.stat', 'pgsteal')) > 0, 'nobody was short of memory');
    await shell('umount /mnt/files');
    await ok('e2fsck', ['-fn', device.path ?? '']);
    for (const pid of [served.pid, ...zygotes]) await writeFile(`/proc/${pid}/oom_score_adj`, '0');
    await group.remove();
  });

  await t.test('D2 the kernel ends others than queue processes when it is out of memory', async () => {
    const device = await served.device('native');
    const group = await Cgroup.make('short', { 'memory.max': '12M', 'memory.swap.max': '0' });
    for (const pid of pidsOf(device)) await group.add(pid);
    assert.notEqual((await inGroup(group, hog(48))).code, 0, 'the memory was there');
    assert.ok((await group.counter('memory.events', 'oom_kill')) > 0);
    await oracles.hold();
    await group.remove();
    assert.deepEqual(pidsOf(await served.device('native')), pidsOf(device));
  });

  await t.test('D2 a queue process that is ended for want of memory is replaced', async () => {
    const device = await served.device('script');
    const [pid = assert.fail()] = pidsOf(device);
    await writeFile(`/proc/${pid}/oom_score_adj`, '1000');
    const group = await Cgroup.make('gone', { 'memory.swap.max': '0' });
    await group.add(pid);
    await group.set('memory.max', '4096');
    const after = await served.untilGeneration('script', device.generation + 1, RECOVERY_TIMEOUT_MS);
    assertCause(after, { signal: 'SIGKILL' });
    assert.equal(await group.counter('memory.events', 'oom_kill'), 1);
    await group.remove();
    await oracles.hold();
  });

  await t.test('D3 without a file descriptor to spare nothing is added, nothing is lost', async () => {
    const limit = async (files: number | string): Promise<unknown> =>
      ok('prlimit', ['--pid', String(served.pid), `--nofile=${String(files)}:`]);
    const [, before] = /^Max open files +([0-9]+)/m.exec(readFileSync(`/proc/${served.pid}/limits`, 'utf8')) ?? [];
    const answers: string[] = [];
    for (let spare = 1; spare <= 8; spare++) {
      await limit(openFiles(served.pid) + spare);
      // With hardly any the connection itself is refused.
      answers.push(
        await served
          .api('POST', '/v1/devices', { name: 'more', queues: 2, backend: { type: 'ram', size: '16MiB' } })
          .then(
            ({ status, body }) => `${status} ${JSON.stringify(body)}`,
            () => 'no connection',
          ),
      );
      await limit(before ?? '');
      if (answers.at(-1)?.startsWith('201') === true) await served.remove('more');
      else assert.equal((await served.api('GET', '/v1/devices/more')).status, 404, answers.at(-1));
    }
    assert.ok(
      answers.some((answer) => answer.includes('EMFILE')),
      answers.join('\n'),
    );
    // And a recovery, which needs several.
    const { generation, queues } = await served.device('native');
    await limit(openFiles(served.pid));
    // Nobody can be asked now: there is none for a connection.
    process.kill(queues[0]?.pid ?? assert.fail(), 'SIGKILL');
    await setTimeout(2000);
    await limit(before ?? '');
    await served.untilGeneration('native', generation + 1);
    await waitFor('only one process a queue', () => processesNamed('ublk/1/').length === 2);
    await oracles.hold();
  });

  await t.test('D3 without a process to spare a recovery is tried until there is one', async () => {
    const group = await Cgroup.make('full');
    await group.add(zygoteOf(await served.device('native')));
    await group.set('pids.max', '1');
    const logged = served.log.length;
    const generation = await killOne('native');
    await waitFor('the refusal', () => served.log.slice(logged).includes('EAGAIN'));
    await group.set('pids.max', 'max');
    await served.untilGeneration('native', generation + 1);
    await group.remove();
    await oracles.hold();
  });

  await t.test('D3 without io_uring, too', async () => {
    const logged = served.log.length;
    await writeFile('/proc/sys/kernel/io_uring_disabled', '2');
    const generation = await killOne('native');
    await waitFor('the refusal', () => served.log.slice(logged).includes('EPERM'));
    await writeFile('/proc/sys/kernel/io_uring_disabled', '0');
    await served.untilGeneration('native', generation + 1);
    await oracles.hold();
  });

  const reports = await oracles.end();
  t.diagnostic(`registers: ${JSON.stringify(reports)}`);
  await shell('swapoff /mnt/disk/swap; umount /mnt/disk');
});

test('E1 a foreign device that nobody serves is not touched', async () => {
  const backend = { type: 'ram', size: '16MiB' };
  const foreign = await RunningSupervisor.start([{ name: 'foreign', id: 20, backend }]);
  const [zygote = assert.fail()] = processesNamed('ublk-zygote');
  process.kill(foreign.pid, 'SIGKILL');
  await foreign.exit;
  process.kill(zygote, 'SIGKILL');
  const quiesced = await waitFor('the kernel seeing that nobody serves it', () => {
    const info = ublkDeviceInfo(20);
    return info?.state === QUIESCED && info;
  });
  const served = await RunningSupervisor.start([{ name: 'own', backend }]);
  const { status, body } = await served.api('POST', '/v1/devices', { name: 'same', id: 20, backend });
  assert.equal(status, 409);
  assert.match(JSON.stringify(body), /id 20 is taken.*choose another id or delete that device \(EEXIST\)/);
  assert.equal(await served.terminate(), 0);
  // The guest ends with it.
  assert.deepEqual(ublkDeviceInfo(20), quiesced);
});
