// run: full
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/api/status.js';
import { Load, verifiedWrites } from './fio.js';
import { RunningSupervisor, assertNothingLeft, isLinux, ok, run, shell, signal, waitFor } from './harness.js';

/** Partitions are devices, whoever made the table and when. */

const MIB = 2 ** 20;
const IMAGE = '/dev/shm/disk.img';
const BY_NAME = '/dev/ublk/by-name';
const KILLS = 10;
const runtimeDir = '/run/partitions';

const devices = [
  { name: 'disk', partitions: true, backend: { type: 'file', path: IMAGE } },
  { name: 'empty', partitions: true, queues: 2, requestTimeout: '3s', backend: { type: 'ram', size: '96MiB' } },
  { name: 'plain', blockSize: 512, backend: { type: 'ram', size: '16MiB' } },
];

const pathOf = ({ path }: DeviceStatus): string => path ?? assert.fail('no path');

function partitionsOf(device: DeviceStatus): readonly number[] {
  const [, , node = ''] = pathOf(device).split('/');
  return readdirSync('/dev')
    .filter((name) => name.startsWith(`${node}p`))
    .map((name) => Number(name.slice(node.length + 1)))
    .sort((a, b) => a - b);
}

function sectorsOf(device: DeviceStatus, number: number): number {
  const node = pathOf(device).slice('/dev/'.length);
  const size = `/sys/block/${node}/${node}p${number}/size`;
  return existsSync(size) ? Number(readFileSync(size, 'latin1')) : 0;
}

/** Whether exactly these partitions are there, and links to them. */
function has(device: DeviceStatus, numbers: readonly number[]): boolean {
  if (partitionsOf(device).join() !== numbers.join()) return false;
  const links = readdirSync(BY_NAME).filter((name) => name.startsWith(`${device.name}-part`));
  const right = numbers.every((number) => {
    const link = `${BY_NAME}/${device.name}-part${number}`;
    return existsSync(link) && readlinkSync(link) === `../../${pathOf(device).slice(5)}p${number}`;
  });
  return right && links.length === numbers.length;
}

const untilHas = (device: DeviceStatus, numbers: readonly number[]): Promise<unknown> =>
  waitFor(`${device.name} having partitions ${numbers.join() || 'none'}`, () => has(device, numbers), 120_000);

/** The supervisor, which alone learns that partition 6 is no longer in the table, leaves the others alone. */
async function assertOnlyOneGoes(device: DeviceStatus): Promise<void> {
  const node = pathOf(device).slice('/dev/'.length);
  const born = (): readonly number[] => [1, 2, 5].map((number) => statSync(`/sys/block/${node}/${node}p${number}`).ino);
  const before = born();
  await shell(`sfdisk -q --no-reread --no-tell-kernel --delete ${pathOf(device)} 6`);
  await untilHas(device, [1, 2, 5]);
  assert.deepEqual(born(), before);
}

/** sfdisk cannot have an old kernel read the table again, and says so; that is not what is looked at. */
const sfdisk = (path: string, script: string, ...options: readonly string[]): Promise<string> =>
  shell(`printf '${script}' | sfdisk -q --no-reread ${options.join(' ')} ${path}`);

test('partitions', { timeout: 1_100_000 }, async (t) => {
  await shell(`truncate -s 64M ${IMAGE}`);
  await sfdisk(IMAGE, 'label: gpt\\n, 16M\\n, 16M\\n');
  let served = await RunningSupervisor.start(devices, { runtimeDir });
  const disk = await served.device('disk');
  const empty = await served.device('empty');

  await t.test('are there when the device is', () => {
    assert.ok(has(disk, [1, 2]));
    assert.equal(disk.blockSize, 512);
    assert.ok(has(empty, []));
  });

  await t.test('are those of a table that is written to the device', async () => {
    await sfdisk(pathOf(empty), 'label: gpt\\n, 32M\\n, 16M\\n');
    await untilHas(empty, [1, 2]);
    await ok('parted', ['-s', pathOf(empty), 'mkpart', 'third', '60MiB', '70MiB']);
    await untilHas(empty, [1, 2, 3]);
    await shell(`sfdisk -q --no-reread --delete ${pathOf(empty)} 3`);
    await untilHas(empty, [1, 2]);
    // The first grows to where the second was.
    await shell(
      `printf 'label: gpt\\n, 48M\\n, 16M\\n' | sfdisk -q --no-reread --no-tell-kernel --wipe never ${pathOf(empty)}`,
    );
    await waitFor('the larger first partition', () => sectorsOf(empty, 1) === 48 * 2048 && has(empty, [1, 2]), 120_000);
    await shell(`
      mkdir -p /run/repart.d
      printf '[Partition]\\nType=home\\nSizeMinBytes=8M\\nSizeMaxBytes=8M\\n' > /run/repart.d/10-more.conf
      systemd-repart --definitions=/run/repart.d --dry-run=no --no-pager ${pathOf(empty)}`);
    await untilHas(empty, [1, 2, 3]);
  });

  await t.test('are looked for when somebody asks', async () => {
    const { code, stderr } = await served.command('partitions', 'plain');
    assert.equal(code, 1);
    assert.match(stderr, /looking for partitions of device plain failed: its configuration does not ask for them; set/);
    await using file = await open(pathOf(empty), 'r+');
    // A table that nobody closes after writing, which is what is noticed otherwise.
    const table = Buffer.alloc(512);
    assert.equal((await file.read(table, 0, 512, 0)).bytesRead, 512);
    await file.write(Buffer.alloc(512), 0, 512, 0);
    assert.deepEqual(await served.command('partitions', 'empty'), { code: 0, stdout: '', stderr: '' });
    assert.ok(has(empty, []));
    await file.write(table, 0, 512, 0);
    const paths = [1, 2, 3].map((number) => `${pathOf(empty)}p${number}`);
    assert.deepEqual(await served.command('partitions', 'empty'), { code: 0, stdout: paths.join('\n'), stderr: '' });
    assert.ok(has(empty, [1, 2, 3]));
  });

  await t.test('A1 keep ext4 under load over kills of queue processes', async () => {
    const partition = `${pathOf(empty)}p1`;
    await shell(`mkfs.ext4 -q ${partition}; mkdir -p /mnt/part; mount ${partition} /mnt/part`);
    await shell('truncate -s 8M /mnt/part/data');
    const load = new Load((pass) =>
      verifiedWrites({ name: 'part', path: '/mnt/part/data', size: '8M', depth: 8 }, pass),
    );
    for (let kill = 0; kill < KILLS; kill++) {
      const { generation, queues } = await served.device('empty');
      signal(queues[kill % 2]?.pid ?? assert.fail(), 'SIGKILL');
      await Promise.race([
        served.untilGeneration('empty', generation + 1, 120_000),
        load.done.then(() => assert.fail('the load ended')),
      ]);
    }
    assert.ok((await load.stop()) > 0);
    await shell('umount /mnt/part');
    await ok('e2fsck', ['-fn', partition]);
    assert.ok(has(empty, [1, 2, 3]));
  });

  await t.test('A8 nobody waits for a table that cannot be read', async () => {
    const { generation, queues } = await served.device('empty');
    for (const { pid } of queues) signal(pid ?? assert.fail(), 'SIGSTOP');
    // Closes it as a writer does.
    await shell(`echo 1 > /proc/sys/vm/drop_caches; : >> ${pathOf(empty)}`);
    assert.equal((await served.device('disk')).state, 'live');
    await served.untilGeneration('empty', generation + 1, 120_000);
    assert.ok(has(empty, [1, 2, 3]));
  });

  await t.test('E2 stay when the device grows', { skip: !isLinux(6, 16) && 'this kernel cannot' }, async () => {
    const { status } = await served.api('POST', '/v1/devices/empty/resize', { size: 128 * MIB, force: false });
    assert.equal(status, 200);
    await untilHas(empty, [1, 2, 3]);
  });

  await t.test('A3 are those of the table for the next supervisor too', async () => {
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    await shell(`sfdisk -q --no-reread --no-tell-kernel --delete ${pathOf(empty)} 3`);
    assert.ok(has(empty, [1, 2, 3]));
    served = await RunningSupervisor.start(devices, { runtimeDir });
    await untilHas(empty, [1, 2]);
    assert.ok(has(disk, [1, 2]));
  });

  await t.test('go with the table', async () => {
    await ok('wipefs', ['-qa', pathOf(empty)]);
    await untilHas(empty, []);
  });

  await t.test('C2 are there from when they are asked for until they are not', async () => {
    const plain = await served.device('plain');
    await sfdisk(pathOf(plain), 'label: dos\\n1: size=4M\\n2: size=8M, type=E\\n5: size=2M\\n6: size=2M\\n');
    assert.ok(has(plain, []));
    const wanted = devices.map((device) => (device.name === 'plain' ? { ...device, partitions: true } : device));
    for (const [configured, numbers] of [
      [wanted, [1, 2, 5, 6]],
      [devices, []],
    ] as const) {
      await served.configure(configured);
      assert.equal((await served.api('POST', '/v1/reload')).status, 200);
      await untilHas(plain, numbers);
      if (configured === wanted) await assertOnlyOneGoes(plain);
    }
  });

  await t.test('E4 are users of the device, and gone after the stop', async () => {
    await shell(`mkfs.ext4 -q ${pathOf(disk)}p2; mkdir -p /mnt/part; mount ${pathOf(disk)}p2 /mnt/part`);
    const { code, stderr } = await served.command('stop');
    assert.notEqual(code, 0);
    assert.match(stderr, /a mount of \/dev\/ublkb[0-9]+p2 at \/mnt\/part/);
    assert.ok(has(disk, [1, 2]));
    await shell('umount /mnt/part');
    assert.equal(await served.terminate(), 0);
    assert.deepEqual(existsSync(BY_NAME) ? readdirSync(BY_NAME) : [], []);
    await assertNothingLeft(runtimeDir);
    assert.match((await run('sfdisk', ['-l', IMAGE])).stdout, /img2/);
  });
});
