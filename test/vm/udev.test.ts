// run: full
// guest: --systemd
// kernels: newest
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, readlinkSync, realpathSync, statSync } from 'node:fs';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { assertNothingLeft, cli, ok, root, run, shell, waitFor } from './harness.js';
import { RUNTIME_DIR, UNIT, installService, systemctl } from './systemd-service.js';

/** deploy/60-ublk-supervisor.rules, and the line for fstab that ublk-supervisor(8) gives, with systemd and udev. */

const RULES = '60-ublk-supervisor.rules';
const LINK = '/dev/ublk/by-name/data';
const DISK = '/dev/ublk/by-name/disk';
const LINK_UNIT = 'dev-ublk-by\\x2dname-data.device';
const IMAGE = '/var/lib/images/data';
/** Where udev keeps a link to the number of each device that it watches. */
const WATCHED = '/run/udev/watch';

const stateOf = async (unit: string): Promise<string> => (await run('systemctl', ['is-active', unit])).stdout.trim();

const partLinks = (): readonly string[] =>
  readdirSync('/dev/ublk/by-name')
    .filter((name) => name.includes('-part'))
    .sort();

/** A block device as udev writes it: b, major and minor number. */
function numberOf(path: string): string {
  const { rdev } = statSync(path);
  return `b${rdev >> 8}:${rdev & 0xff}`;
}

test('a file system in fstab', { timeout: 600_000 }, async (t) => {
  await mkdir('/var/lib/images', { recursive: true });
  await shell(`truncate -s 32M ${IMAGE}; mkfs.ext4 -q -b 4096 ${IMAGE}`);
  await installService([
    { name: 'data', backend: { type: 'file', path: IMAGE } },
    { name: 'disk', partitions: true, backend: { type: 'ram', size: '32MiB' } },
  ]);
  await mkdir('/etc/udev/rules.d', { recursive: true });
  await copyFile(join(root, 'deploy', RULES), `/etc/udev/rules.d/${RULES}`);
  // Not every udev watches ublk devices by itself.
  await writeFile('/etc/udev/rules.d/59-watch.rules', 'ACTION!="remove", SUBSYSTEM=="block", OPTIONS+="watch"\n');
  const manual = readFileSync(join(root, 'man/ublk-supervisor.8'), 'utf8');
  const [line = assert.fail('the manual gives no line for fstab')] =
    /^\/dev\/ublk\/by-name\/data .*$/m.exec(manual) ?? [];
  await writeFile('/etc/fstab', `${line}\n`);
  await systemctl('start', 'systemd-udevd.service');
  await systemctl('daemon-reload');

  await t.test('is mounted when the service that it requires has made its device', async () => {
    assert.equal(await stateOf(UNIT), 'inactive');
    await systemctl('start', 'srv.mount');
    assert.deepEqual(await Promise.all([UNIT, LINK_UNIT].map(stateOf)), ['active', 'active']);
    await shell('mountpoint -q /srv; echo a >/srv/a');
  });

  await t.test('is on a device that udev does not watch for writers', async () => {
    await shell(`: >>${LINK}; modprobe loop; udevadm trigger --name-match=loop0; udevadm settle`);
    const watched = readdirSync(WATCHED).map((name) => readlinkSync(join(WATCHED, name)));
    const seen = ['/dev/loop0', LINK].map((path) => watched.includes(numberOf(path)));
    assert.deepEqual(seen, [true, false], watched.join());
  });

  await t.test("has partitions beside it, with links that are udev's to know and not to remove", async () => {
    const table = (sizes: string): Promise<string> =>
      shell(`printf 'label: gpt\\n${sizes}' | sfdisk -q --no-reread --no-tell-kernel --wipe always ${DISK}`);
    const isActive = (number: number): Promise<boolean> =>
      stateOf(`dev-ublk-by\\x2dname-disk\\x2dpart${number}.device`).then((state) => state === 'active');
    const untilOnly = async (...numbers: readonly number[]): Promise<void> => {
      await waitFor(
        `partitions ${numbers.join()} being there for systemd`,
        async () => {
          const active = await Promise.all([1, 2].map(isActive));
          return active.every((is, index) => is === numbers.includes(index + 1));
        },
        60_000,
      );
      await shell('udevadm settle');
      assert.deepEqual(
        partLinks(),
        numbers.map((number) => `disk-part${number}`),
      );
      for (const number of numbers) {
        assert.equal(realpathSync(`${DISK}-part${number}`), `${realpathSync(DISK)}p${number}`);
      }
    };
    await table(', 8M\\n, 8M\\n');
    await untilOnly(1, 2);
    // Another table: each partition goes, and one of the same name comes.
    await table(', 4M\\n');
    await untilOnly(1);
    await ok(process.execPath, [cli, 'partitions', 'disk', '--runtime-dir', RUNTIME_DIR]);
    await untilOnly(1);
    await ok('wipefs', ['-qa', DISK]);
    await untilOnly();
  });

  await t.test('E4 is unmounted before the service stops', async () => {
    await systemctl('stop', UNIT);
    assert.deepEqual(await Promise.all(['srv.mount', UNIT, LINK_UNIT].map(stateOf)), [
      'inactive',
      'inactive',
      'inactive',
    ]);
    await assertNothingLeft(RUNTIME_DIR);
    await ok('e2fsck', ['-fn', IMAGE]);
    assert.equal(await ok('debugfs', ['-R', 'cat /a', IMAGE]), 'a');
  });
});
