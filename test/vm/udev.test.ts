// run: full
// guest: --systemd
// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { copyFile, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { assertNothingLeft, cli, ok, root, run, shell } from './harness.js';

/** deploy/60-ublk-supervisor.rules, and the line for fstab that ublk-supervisor(8) gives, with systemd and udev. */

const UNIT = 'ublk-supervisor.service';
const RULES = '60-ublk-supervisor.rules';
const LINK = '/dev/ublk/by-name/data';
const LINK_UNIT = 'dev-ublk-by\\x2dname-data.device';
const IMAGE = '/var/lib/images/data';
/** Links to the numbers of devices; there as long as any is watched. */
const WATCHED = '/run/udev/watch';

const systemctl = (...args: string[]): Promise<string> => ok('systemctl', args);
const stateOf = async (unit: string): Promise<string> => (await run('systemctl', ['is-active', unit])).stdout.trim();

/** Major and minor number of the device, as udev writes them. */
function deviceNumber(): string {
  const { rdev } = statSync(LINK);
  return `${String(rdev >> 8)}:${String(rdev & 0xff)}`;
}

test('a file system in fstab', { timeout: 600_000 }, async (t) => {
  const node = '/usr/local/bin/node';
  if (process.execPath !== node) await shell(`ln -sf ${process.execPath} ${node}`);
  await symlink(cli, '/usr/local/bin/ublk-supervisor');
  for (const directory of ['/etc/ublk-supervisor', '/etc/udev/rules.d', '/var/lib/images']) {
    await mkdir(directory, { recursive: true });
  }
  await copyFile(join(root, 'deploy', UNIT), `/etc/systemd/system/${UNIT}`);
  await copyFile(join(root, 'deploy', RULES), `/etc/udev/rules.d/${RULES}`);
  // Not every udev watches ublk devices by itself.
  await writeFile('/etc/udev/rules.d/59-watch.rules', 'ACTION!="remove", SUBSYSTEM=="block", OPTIONS+="watch"\n');
  await shell(`truncate -s 32M ${IMAGE}; mkfs.ext4 -q -b 4096 ${IMAGE}`);
  const devices = [{ name: 'data', backend: { type: 'file', path: IMAGE } }];
  await writeFile('/etc/ublk-supervisor/config.json', JSON.stringify({ devices }));
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
    await shell(`: >>${LINK}; udevadm settle`);
    const watched = existsSync(WATCHED) ? readdirSync(WATCHED).map((name) => readlinkSync(join(WATCHED, name))) : [];
    assert.ok(!watched.includes(`b${deviceNumber()}`), watched.join());
  });

  await t.test('E4 is unmounted before the service stops', async () => {
    await systemctl('stop', UNIT);
    assert.deepEqual(await Promise.all(['srv.mount', UNIT, LINK_UNIT].map(stateOf)), [
      'inactive',
      'inactive',
      'inactive',
    ]);
    await assertNothingLeft('/run/ublk-supervisor');
    await ok('e2fsck', ['-fn', IMAGE]);
    assert.equal(await ok('debugfs', ['-R', 'cat /a', IMAGE]), 'a');
  });
});
