// run: full
// guest: --systemd
// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readlinkSync } from 'node:fs';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { COMMAND_TIMEOUT_MS, assertNothingLeft, cli, hasEnded, ok, processesNamed, run } from './harness.js';
import { shell, waitFor } from './harness.js';
import { CONFIG, RUNTIME_DIR, UNIT, installService, systemctl } from './systemd-service.js';

/** deploy/ublk-supervisor.service, run by the systemd that is this guest's PID 1. */

const LINKS = '/dev/ublk/by-name';
const devices = ['disk', 'other'].map((name, id) => ({ name, id, backend: { type: 'ram', size: '32MiB' } }));

async function show(property: string): Promise<string> {
  return (await systemctl('show', '--value', '-p', property, UNIT)).trim();
}

const becomes = (property: string, wanted: string | RegExp): Promise<string | true> =>
  waitFor(
    `${property} becoming ${String(wanted)}`,
    async () => {
      const value = await show(property);
      return typeof wanted === 'string' ? value === wanted : wanted.test(value) && value;
    },
    COMMAND_TIMEOUT_MS,
  );

const journal = (): Promise<string> => ok('journalctl', ['-b', '-u', UNIT, '-o', 'cat', '--no-pager']);

const isReadable = (name: string): Promise<string> =>
  ok('dd', [`if=${LINKS}/${name}`, 'of=/dev/null', 'bs=4k', 'count=8', 'iflag=direct', 'status=none']);

const linkOf = (name: string): string | null => {
  try {
    return readlinkSync(`${LINKS}/${name}`);
  } catch {
    return null;
  }
};

async function isGone(): Promise<void> {
  await becomes('ActiveState', 'inactive');
  assert.equal(await show('Result'), 'success');
  assert.deepEqual([linkOf('disk'), linkOf('other')], [null, null]);
  await assertNothingLeft(RUNTIME_DIR);
}

test('the systemd unit', { timeout: 1_100_000 }, async (t) => {
  await installService(devices);

  await t.test('is what systemd understands', async () => {
    assert.equal(await ok('bash', ['-c', `systemd-analyze verify --man=no /etc/systemd/system/${UNIT} 2>&1`]), '');
    await systemctl('daemon-reload');
  });

  await t.test('has started when every device is live, and linked by its name', async () => {
    await mkdir(LINKS, { recursive: true });
    await symlink('../../ublkb77', `${LINKS}/stale`);
    await symlink('../../null', `${LINKS}/foreign`);
    await systemctl('start', UNIT);
    assert.equal(await show('StatusText'), '2 devices live', await journal());
    await Promise.all(['disk', 'other'].map(isReadable));
    assert.deepEqual(['disk', 'other', 'stale', 'foreign'].map(linkOf), [
      '../../ublkb0',
      '../../ublkb1',
      null,
      '../../null',
    ]);
  });

  await t.test('is the same service when the supervisor goes on as what is installed', async () => {
    const [pid, serving] = [await show('MainPID'), processesNamed('ublk/')];
    await ok(process.execPath, [cli, 'upgrade', '--self']);
    await becomes('StatusText', '2 devices live');
    assert.deepEqual(await Promise.all(['MainPID', 'NRestarts', 'ActiveState'].map(show)), [pid, '0', 'active']);
    assert.deepEqual(processesNamed('ublk/'), serving);
  });

  const watched = await show('WatchdogTimestampMonotonic');

  await t.test('passes nothing of systemd on to its children', () => {
    for (const pid of processesNamed('ublk')) {
      assert.doesNotMatch(readFileSync(`/proc/${pid}/environ`, 'utf8'), /NOTIFY|WATCHDOG|DIRECTORY/);
    }
  });

  await t.test('reloads', async () => {
    await systemctl('reload', UNIT);
    await becomes('ActiveState', 'active');
    await becomes('StatusText', '2 devices live');
    const good = readFileSync(CONFIG, 'utf8');
    await writeFile(CONFIG, '{ "devices": [ {} ] }');
    const { code } = await run('systemctl', ['reload', UNIT]);
    assert.notEqual(code, 0, 'systemctl says nothing of a refusal');
    assert.match(await journal(), /ublk-supervisor: \S+\/config\.json: devices\[0\]\.name: expected a string/);
    assert.equal(await show('ActiveState'), 'active');
    await writeFile(CONFIG, good);
    await systemctl('reload', UNIT);
  });

  await t.test('says what its devices do, and keeps the links of those that recover', async () => {
    const [queue] = processesNamed('ublk/0/0');
    assert.ok(queue);
    process.kill(queue, 'SIGKILL');
    await waitFor('the recovery', () => hasEnded(queue) && processesNamed('ublk/0/0').length > 0);
    await becomes('StatusText', '2 devices live');
    assert.equal(linkOf('disk'), '../../ublkb0');
    await isReadable('disk');
  });

  await t.test('finds stores below an automount, and in /tmp', async () => {
    await shell(`
      truncate -s 32M /run/lazy.img
      mkfs.ext4 -q /run/lazy.img
      modprobe loop; modprobe autofs4
      printf '[Mount]\\nWhat=/run/lazy.img\\nWhere=/run/lazy\\nType=ext4\\nOptions=loop\\n' > /run/systemd/system/run-lazy.mount
      printf '[Automount]\\nWhere=/run/lazy\\n' > /run/systemd/system/run-lazy.automount`);
    await systemctl('daemon-reload');
    await systemctl('start', 'run-lazy.automount');
    for (const path of ['/run/lazy/disk.img', '/tmp/disk.img']) {
      await ok(process.execPath, [cli, 'add', 'file', `path=${path}`, 'size=4194304', '--name', 'more']);
      await isReadable('more');
      await ok(process.execPath, [cli, 'del', 'more']);
      assert.ok(existsSync(path), path);
    }
    await systemctl('stop', 'run-lazy.automount', 'run-lazy.mount');
  });

  await t.test('gives signs of life', async () => {
    await waitFor('a WATCHDOG=1', async () => (await show('WatchdogTimestampMonotonic')) !== watched, 60_000);
  });

  await t.test('E4 stops when nobody uses a device any more', async () => {
    await shell(`mkfs.ext4 -q ${LINKS}/disk; mkdir -p /mnt/disk; mount ${LINKS}/disk /mnt/disk; echo a >/mnt/disk/a`);
    await systemctl('stop', '--no-block', UNIT);
    await becomes('StatusText', /^waiting to stop: .* in use by a mount at \/mnt\/disk/);
    assert.equal(readFileSync('/mnt/disk/a', 'utf8'), 'a\n');
    await isReadable('other');
    await ok('umount', ['/mnt/disk']);
    await isGone();
  });

  await t.test('E4 stops after file systems were unmounted when the machine shuts down', async () => {
    await systemctl('start', UNIT);
    await shell(`mount -o _netdev ${LINKS}/disk /mnt/disk; echo b >/mnt/disk/b`);
    const before = await journal();
    // What a shutdown does before the last processes are killed.
    const last = 'umount.target shutdown.target';
    const target = `[Unit]\nDefaultDependencies=no\nWants=${last}\nAfter=${last}\n`;
    await writeFile('/run/systemd/system/down.target', target);
    await systemctl('daemon-reload');
    await systemctl('start', '--job-mode=replace-irreversibly', 'down.target');
    await isGone();
    const said = (await journal()).slice(before.length);
    assert.match(said, /stopping/);
    assert.doesNotMatch(said, /still serving/, 'it was stopped while the file system was mounted');
  });

  await t.test('E4 is killed alone when the time for its stop is over, and adopts what was served on', async () => {
    await systemctl('start', UNIT);
    const serving = processesNamed('ublk/');
    assert.equal(serving.length, 2);
    await ok('mount', [`${LINKS}/disk`, '/mnt/disk']);
    const before = await journal();
    await systemctl('stop', '--no-block', UNIT);
    await becomes('ActiveState', 'failed');
    assert.equal(await show('Result'), 'timeout');
    const said = (await journal()).slice(before.length);
    assert.match(said, /in use by a mount at \/mnt\/disk[^\n]*; still serving/);
    assert.doesNotMatch(said, /device (disk|other) is /, 'who looks whether a device is in use has touched it');
    await Promise.all(['disk', 'other'].map(isReadable));
    assert.deepEqual(processesNamed('ublk/'), serving);
    await systemctl('start', UNIT);
    assert.deepEqual(processesNamed('ublk/'), serving);
    assert.equal(await shell('cat /mnt/disk/[ab] | tr -d "\\n"'), 'ab');
    await ok('umount', ['/mnt/disk']);
    await systemctl('stop', UNIT);
    await isGone();
  });

  await t.test('A3 is started again after it was killed, and its devices are served meanwhile', async () => {
    await systemctl('start', UNIT);
    const serving = processesNamed('ublk/');
    assert.equal(serving.length, 2);
    await shell(`mount ${LINKS}/disk /mnt/disk; echo c >/mnt/disk/c; sync`);
    const killed = await show('MainPID');
    await systemctl('kill', '--signal=KILL', '--kill-who=main', UNIT);
    await waitFor('the restart', async () => Number(await show('NRestarts')) > 0, COMMAND_TIMEOUT_MS);
    await Promise.all(['disk', 'other'].map(isReadable));
    assert.deepEqual(processesNamed('ublk/'), serving);
    assert.equal(await shell('cat /mnt/disk/[abc] | tr -d "\\n"'), 'abc');
    assert.ok(!existsSync(`/proc/${killed}`));
    await ok('umount', ['/mnt/disk']);
    await becomes('ActiveState', 'active');
    await becomes('StatusText', '2 devices live');
    assert.deepEqual(processesNamed('ublk/'), serving);
    await systemctl('stop', UNIT);
    await isGone();
  });
});
