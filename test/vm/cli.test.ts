// kernels: newest
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, ok, run, supervisorCommand, traces, waitFor } from './harness.js';

/** The command line against a running supervisor. Commands run two at a time: each costs a start of node. */

const both = <First, Second>(first: Promise<First>, second: Promise<Second>): Promise<[First, Second]> =>
  Promise.all([first, second]);
const done = { code: 0, stdout: '', stderr: '' };
const failed = (reason: string): object => ({ code: 1, stdout: '', stderr: `ublk-supervisor: ${reason}` });

test('the command line', async (t) => {
  const served = await RunningSupervisor.start([{ name: 'first', id: 5, backend: { type: 'ram', size: '16MiB' } }]);

  await t.test('add prints the path of a device that is usable', async () => {
    const { code, stdout, stderr } = await served.command(
      ...['add', 'ram', 'size=32MiB', '--name', 'second', '--number', '7', '--queues', '2', '--depth', '16'],
      ...['--block-size', '512'],
    );
    await ok('dd', ['if=/dev/zero', `of=${stdout}`, 'bs=512', 'count=1', 'oflag=direct', 'status=none']);
    assert.deepEqual([code, stdout, stderr], [0, '/dev/ublkb7', '']);
    assert.equal((await ok('blockdev', ['--getsize64', stdout])).trim(), String(32 * 2 ** 20));
    const { queues, blockSize } = await served.device('second');
    assert.deepEqual([queues.length, queues[0]?.depth, blockSize], [2, 16, 512]);
  });

  await t.test('list and status', async () => {
    const [list, json] = await both(
      served.command('list', '-o', 'NAME,ID,PATH,STATE,SIZE,QUEUES'),
      served.command('status', '--json'),
    );
    assert.equal(list.code, 0);
    assert.deepEqual(
      list.stdout.split('\n').map((line) => line.trim().split(/ +/)),
      [
        ['NAME', 'ID', 'PATH', 'STATE', 'SIZE', 'QUEUES'],
        ['first', '5', '/dev/ublkb5', 'live', '16M', '1'],
        ['second', '7', '/dev/ublkb7', 'live', '32M', '2'],
      ],
    );
    assert.deepEqual(JSON.parse(json.stdout), await served.status());
  });

  await t.test('the socket talks to curl', async () => {
    const socket = join(served.runtimeDir, 'control.sock');
    const curl = (...args: string[]): Promise<string> => ok('curl', ['-sS', '--unix-socket', socket, ...args]);
    assert.equal((JSON.parse(await curl('http://ublk/v1/devices/second')) as { id: number }).id, 7);
    assert.equal(await curl('-o', '/dev/null', '-w', '%{http_code}', 'http://ublk/v1/devices/nobody'), '404');
  });

  await t.test('what cannot be done fails with one line', async () => {
    const [del, add] = await both(
      served.command('del', 'nobody'),
      served.command('add', 'null', 'size=1M', '--name', 'second'),
    );
    assert.deepEqual(del, failed('removing device nobody failed: there is no such device; see ublk-supervisor list'));
    const another = 'remove it or choose another name';
    assert.deepEqual(add, failed(`adding device second failed: there is a device of that name; ${another}`));
    const backend = { type: 'null', size: '1MiB' };
    const { status, body } = await served.api('POST', '/v1/devices', { name: 'third', id: 7, backend });
    assert.equal(status, 409);
    assert.match(JSON.stringify(body), /id 7 is that of device second; choose another id/);
    const { code, stderr } = await supervisorCommand('list', '--runtime-dir', '/run/nowhere');
    assert.equal(code, 3);
    assert.match(stderr, /^ublk-supervisor: the supervisor is not running \(no \/run\/nowhere\/control\.sock\)[^\n]+$/);
    assert.equal((await served.status()).devices.length, 2);
  });

  await t.test('recover, and del with the data', async () => {
    const pid = (await served.device('second')).queues[1]?.pid;
    assert.ok(pid);
    process.kill(pid, 'SIGKILL');
    await served.untilLive('second', 1);
    assert.ok(existsSync('/dev/shm/ublk-supervisor/second.ram'));
    const [recovered, deleted] = await both(served.command('recover', 'first'), served.command('del', 'second'));
    assert.deepEqual([recovered, deleted], [done, done]);
    assert.ok(!existsSync('/dev/shm/ublk-supervisor/second.ram'), 'the data is left');
    await waitFor('the device leaving the kernel', () => traces(7).length === 0, 5_000);
  });

  await t.test('features, doctor, check and schema', async () => {
    await writeFile('/run/bad.json', '{ "devices": [{}], "more": 1 }');
    const [features, doctor] = await both(supervisorCommand('features', '--json'), served.command('doctor', '--json'));
    const { bits, features: listed } = JSON.parse(features.stdout) as {
      bits: string;
      features: { feature: string; offered: boolean }[];
    };
    const offered = new Map(listed.map(({ feature, offered }) => [feature, offered]));
    const ones = BigInt(bits).toString(2).replaceAll('0', '').length;
    assert.equal([...offered.values()].filter(Boolean).length, ones, 'every feature of this kernel is listed');
    assert.equal(offered.get('USER_RECOVERY'), true);
    const release = (await ok('uname', ['-r'])).trim();
    assert.equal(offered.get('QUIESCE'), !/^6\.1[0-5]\./.test(release), 'QUIESCE is in kernels from 6.16 on');
    assert.equal(doctor.code, 0, doctor.stdout);
    const { checks } = JSON.parse(doctor.stdout) as { checks: { id: string; status: string; detail: string }[] };
    assert.deepEqual(
      checks.filter(({ status, id }) => status !== 'ok' && id !== 'memlock'),
      [],
    );
    assert.match(checks.find(({ id }) => id === 'devices')?.detail ?? '', /^1 of this supervisor, 0 of others$/);
    const [bad, schema] = await both(supervisorCommand('check', '/run/bad.json'), supervisorCommand('schema'));
    assert.equal(bad.code, 78);
    const lines = bad.stderr.split('\n');
    assert.ok(
      lines.length > 1 && lines.every((line) => line.startsWith('ublk-supervisor: /run/bad.json: ')),
      bad.stderr,
    );
    const above = { name: 'a', backend: { type: 'file', path: '/dev/ublkb5' } };
    await writeFile('/run/device.json', JSON.stringify({ devices: [above] }));
    assert.deepEqual(await supervisorCommand('check', '/run/device.json'), {
      code: 78,
      stdout: '',
      stderr:
        'ublk-supervisor: /run/device.json: devices[0].backend: opening /dev/ublkb5 failed: ' +
        'it is a ublk device, and two that wait for each other never end; name what is below it',
    });
    const { properties } = JSON.parse(schema.stdout) as { properties: object };
    assert.ok('devices' in properties);
  });

  await t.test('stop without a name ends the supervisor before it returns', async () => {
    assert.deepEqual(await served.command('stop'), done);
    assert.equal((await run('test', ['-e', `/proc/${served.pid}/cmdline`])).code, 1);
    assert.equal(await served.exit, 0);
  });
  await assertNothingLeft(served.runtimeDir);
});
