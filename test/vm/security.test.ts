// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, statSync, symlinkSync } from 'node:fs';
import { chmod, copyFile, mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  RunningSupervisor,
  assertNothingLeft,
  cli,
  ok,
  processesNamed,
  root,
  run,
  shell,
  trust,
  waitFor,
} from './harness.js';
import type { Finished } from './harness.js';
import { Witness } from './witness.js';

/** What strangers and readers can do to a supervisor, and what its queue processes can do. */

const SUPERVISOR = '/run/guarded';
const SOCKET = join(SUPERVISOR, 'control.sock');
const reader = ['--reuid', '1000', '--regid', '1000', '--groups', 'users'];
const stranger = ['--reuid', '1000', '--regid', '1000', '--clear-groups'];
const as = (who: readonly string[], ...args: readonly string[]): Promise<Finished> =>
  run('setpriv', [...who, process.execPath, ...args], 200_000);

/** Says what it can do besides serving; ends, with words that would deceive a terminal, when its first MiB is written to. */
const confinedBackend = `
import { readFileSync } from 'node:fs';
export default {
  name: 'confined',
  open(_options, context) {
    let secret = 'unreadable';
    try { secret = readFileSync('/run/secret', 'utf8'); } catch (error) { secret = error.code; }
    context.log.warn('secret: ' + secret + ', uid ' + process.getuid());
    const size = 4 * 2 ** 20;
    const disk = context.sharedMemory('disk', size);
    return {
      size,
      read: (buffer, offset) => disk.copy(buffer, 0, offset, offset + buffer.length),
      write: (buffer, offset) => {
        const first = context.sharedMemory('first', 4096);
        if (offset === 2 ** 20 && first[0] === 0) {
          first[0] = 1;
          setImmediate(() => { throw new Error('\\u001b[2J\\u009b2J\\nlast: live'); });
          return new Promise(() => undefined);
        }
        return buffer.copy(disk, offset);
      },
    };
  },
};`;

/** Runs a program of Node's, in a user namespace of its own too, and says what that said. */
const runningBackend = (...args: readonly string[]): string => `
import { execFile } from 'node:child_process';
export default {
  name: 'running',
  open(_options, context) {
    const node = [process.execPath, ...${JSON.stringify(args)}];
    const env = { PATH: process.env.PATH };
    for (const [where, [command, ...args]] of [['plain', node], ['namespace', ['unshare', '--user', '--keep-caps', ...node]]]) {
      execFile(command, args, { env }, (error, stdout, stderr) => {
        context.log.warn(where + ': ' + (error ? stderr + error.message : stdout));
      });
    }
    return { size: 2 ** 20, read: (buffer) => buffer.length, write: (buffer) => buffer.length };
  },
};`;

const statusLine = (pid: number, key: string): string =>
  new RegExp(`^${key}:[ \\t]*(.*)$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]?.trim() ?? '?';
/** As src/api/server.ts has it. */
const MOST_CONNECTIONS = 64;

const openFiles = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

const peakMiB = (pid: number): number => parseInt(statusLine(pid, 'VmHWM')) / 1024;

interface Outcome {
  readonly statuses: readonly string[];
  readonly written: number;
}
type Attack = Record<string, Outcome>;

test('security', { timeout: 1_100_000 }, async (t) => {
  await mkdir('/run/backends', { mode: 0o755 });
  const module = '/run/backends/confined.mjs';
  await writeFile(module, confinedBackend, { mode: 0o644 });
  await trust(module);
  await writeFile('/run/secret', 'root only', { mode: 0o600 });
  const hostile = '/run/backends/hostile.mjs';
  await copyFile(join(root, 'dist/test/vm/hostile-client.js'), hostile);
  await chmod(hostile, 0o644);
  const served = await RunningSupervisor.start(
    [
      { name: 'witness', id: 0, backend: { type: 'ram', size: '16MiB' } },
      { name: 'native', id: 1, queues: 2, user: 'nobody', backend: { type: 'ram', size: '16MiB' } },
      { name: 'script', id: 2, user: 1000, backend: { type: module } },
    ],
    { runtimeDir: SUPERVISOR, args: ['--group', 'users'] },
  );
  const witness = await Witness.of('/dev/ublkb0');

  await t.test('queue processes run as the device says, and cannot go back', async () => {
    for (const [name, uid] of [
      ['native', 65534],
      ['script', 1000],
    ] as const) {
      const { queues, state } = await served.device(name);
      assert.equal(state, 'live');
      for (const { pid } of queues) {
        assert.ok(pid);
        const ids = (key: string): Set<string> => new Set(statusLine(pid, key).split(/\s+/));
        assert.deepEqual(ids('Uid'), new Set([String(uid)]));
        assert.deepEqual([ids('Gid').size, ids('Gid').has('0')], [1, false]);
        assert.equal(statusLine(pid, 'Groups'), '');
        for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) {
          assert.match(statusLine(pid, set), /^0+$/);
        }
        assert.equal(statusLine(pid, 'NoNewPrivs'), '1');
        assert.equal(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8').trim(), '-1000');
        // Not dumpable: no other process of that user may trace it.
        assert.equal(statSync(`/proc/${pid}/mem`).uid, 0);
      }
    }
    await served.logs(/secret: EACCES, uid 1000/);
    assert.ok(!served.log.includes('root only'));
  });

  await t.test('one that is root without capabilities gets nothing done that is not for its own device', async () => {
    const [zygote] = processesNamed('ublk-zygote');
    const others = [served.pid, zygote, (await served.device('witness')).queues[0]?.pid].join(',');
    const running = '/run/backends/running.mjs';
    const program = runningBackend(join(root, 'dist/test/vm/hostile-queue.js'), SUPERVISOR, others);
    await writeFile(running, program, { mode: 0o644 });
    const device = { name: 'plain', queues: 1, backend: { type: running } };
    const { status, body } = await served.api('POST', '/v1/devices', device);
    assert.equal(status, 201, JSON.stringify(body));
    for (const where of ['plain', 'namespace']) {
      // The probe may end before it has heard.
      const said = await waitFor(`what came of it in ${where}`, () => {
        const lines = served.log.split('\n').filter((line) => line.includes(`"${where}: `));
        return lines.length > 0 && lines;
      });
      for (const line of said) {
        const text = (JSON.parse(line) as { readonly msg: string }).msg;
        assert.match(text, /^(plain|namespace): \{/);
        const { capabilities, zygotes, ...outcome } = JSON.parse(text.slice(text.indexOf('{'))) as {
          readonly capabilities: string;
          readonly zygotes: readonly (string | null)[];
        };
        if (where === 'namespace') assert.doesNotMatch(capabilities, /^0+$/);
        assert.ok(zygotes.length >= 3 && zygotes.every((said) => said === null), String(zygotes));
        assert.deepEqual(outcome, {
          status: 403,
          stop: 403,
          signals: ['EPERM', 'EPERM', 'EPERM'],
          memory: ['EACCES', 'EACCES', 'EACCES'],
        });
      }
    }
    await served.remove('plain');
    // Not all of root's uid is root.
    const weak = await run('setpriv', [
      '--bounding-set',
      '-all',
      process.execPath,
      cli,
      'list',
      '--runtime-dir',
      SUPERVISOR,
    ]);
    assert.equal(weak.code, 1);
    assert.match(weak.stderr, /^ublk-supervisor: GET is not for root without CAP_SYS_ADMIN, [^\n]+$/);
  });

  await t.test('they serve, are replaced, and end with their zygote', async () => {
    for (const path of ['/dev/ublkb1', '/dev/ublkb2']) {
      await shell(`head -c 64K /dev/urandom > /run/written
        dd if=/run/written of=${path} bs=16k oflag=direct status=none
        dd if=${path} of=/run/read bs=16k count=4 iflag=direct status=none
        cmp /run/written /run/read`);
    }
    const before = processesNamed('ublk/');
    assert.equal(before.length, 4);
    for (const zygote of processesNamed('ublk-zygote')) process.kill(zygote, 'SIGKILL');
    for (const name of ['witness', 'native', 'script']) await served.untilLive(name, 1, 120_000);
    assert.deepEqual(
      processesNamed('ublk/').filter((pid) => before.includes(pid)),
      [],
      'some outlived the zygote',
    );
    await ok('dd', ['if=/dev/ublkb1', 'of=/run/read', 'bs=16k', 'count=4', 'iflag=direct', 'status=none']);
  });

  await t.test('a user that cannot become is no reason to go on as root', async () => {
    const device = { name: 'more', user: 'no-such-user', backend: { type: 'null', size: '1MiB' } };
    const { status, body } = await served.api('POST', '/v1/devices', device);
    assert.equal(status, 400);
    assert.match(JSON.stringify(body), /user: expected a user of this machine, got \\"no-such-user\\"/);
    const weak = await RunningSupervisor.start([{ ...device, user: 'nobody', recovery: { maxRestarts: 0 } }], {
      under: ['setpriv', '--bounding-set', '-setuid'],
    });
    const { state, reason } = await weak.device('more');
    assert.equal(state, 'failed');
    assert.match(reason ?? '', /changing the user.* \(EPERM\)/);
    assert.equal(await weak.terminate(), 0);
  });

  await t.test('members of the group read, nobody else connects', async () => {
    const status = await as(reader, cli, 'status', '--runtime-dir', SUPERVISOR);
    assert.deepEqual([status.code, status.stderr], [0, '']);
    assert.match(status.stdout, /^witness: live$/m);
    const stop = await as(reader, cli, 'stop', '--force', '--runtime-dir', SUPERVISOR);
    assert.deepEqual(stop, {
      code: 1,
      stdout: '',
      stderr: "ublk-supervisor: POST is for root only; members of the socket's group may GET",
    });
    const denied = await as(stranger, cli, 'list', '--runtime-dir', SUPERVISOR);
    assert.equal(denied.code, 1);
    assert.match(denied.stderr, /^ublk-supervisor: connecting to \S+ failed: permission denied \(EACCES\); [^\n]+$/);
    assert.equal((await served.status()).devices.length, 3);
  });

  for (const [who, prefix, refusal] of [
    ['root', [], { body: '413', deep: '400', prototype: '400' }],
    ['a reader', ['setpriv', ...reader], { body: '403', deep: '403', prototype: '403' }],
  ] as const) {
    await t.test(`F1 garbage on the control socket by ${who}`, async () => {
      const before = peakMiB(served.pid);
      const openBefore = openFiles(served.pid);
      let most = 0;
      const [command = '', ...args] = [...prefix, process.execPath, hostile, SOCKET];
      const attack = run(command, args, 200_000);
      let answered = 0;
      const end = attack.then(() => true);
      while (!(await Promise.race([end, Promise.resolve(false)]))) {
        const answer = await served.status().catch(() => null);
        if (answer !== null) answered += 1;
        most = Math.max(most, openFiles(served.pid));
        await witness.round();
      }
      const { code, stdout, stderr } = await attack;
      assert.equal(code, 0, stderr);
      const outcome = JSON.parse(stdout) as Attack;
      const { garbage, line, body, half, silence, unread, atOnce, deep, prototype } = outcome;
      assert.deepEqual(garbage?.statuses, ['HTTP/1.1 400']);
      for (const endless of [line, body]) assert.ok(endless && endless.written < 2 ** 25, String(endless?.written));
      const tooSlow = who === 'root' ? 'HTTP/1.1 408' : 'HTTP/1.1 403';
      assert.ok(
        half?.statuses.every((status) => status === tooSlow),
        String(half?.statuses),
      );
      assert.ok(silence && unread, 'silence or not reading was not cut off');
      assert.ok(atOnce && atOnce.statuses.length <= 1, 'requests in one piece were all answered');
      assert.ok((body?.statuses ?? []).every((status) => status === `HTTP/1.1 ${refusal.body}`));
      assert.deepEqual(deep?.statuses, [`HTTP/1.1 ${refusal.deep}`]);
      assert.deepEqual(prototype?.statuses, [`HTTP/1.1 ${refusal.prototype}`]);
      assert.ok(most > openBefore && most <= openBefore + MOST_CONNECTIONS + 16, `${most - openBefore} at once`);
      assert.ok(answered > 0);
      assert.ok(peakMiB(served.pid) - before < 64, `${peakMiB(served.pid) - before} MiB more`);
      const { devices } = await served.status();
      assert.deepEqual(
        devices.map(({ name, state, recoveries }) => [name, state, recoveries]),
        [
          ['witness', 'live', 1],
          ['native', 'live', 1],
          ['script', 'live', 1],
        ],
      );
    });
  }

  await t.test('F2 names and paths that lead elsewhere', async () => {
    for (const name of ['../x', 'a/b', '.', 'a\0b', 'a\nb', 'ä', 'A', '', 'x'.repeat(64), '__proto__', '-x']) {
      const { status, body } = await served.api('POST', '/v1/devices', {
        name,
        backend: { type: 'ram', size: '1MiB' },
      });
      assert.equal(status, 400, name);
      assert.match(JSON.stringify(body), /device: name: expected 1 to 63 of a-z/);
    }
    for (const path of ['/run/a\0b', `/${'x/'.repeat(3000)}`, '/proc/self/fd', '']) {
      const { status } = await served.api('POST', '/v1/devices', { name: 'file', backend: { type: 'file', path } });
      assert.ok(status >= 400, path);
    }
    assert.equal((await served.status()).devices.length, 3);
    const directory = await mkdtemp('/run/link-');
    symlinkSync(SUPERVISOR, join(directory, 'link'));
    const config = join(directory, 'config.json');
    await writeFile(config, '{"devices":[]}');
    const linked = await run(process.execPath, [cli, 'start', config, '--runtime-dir', join(directory, 'link')]);
    assert.equal(linked.code, 73);
    assert.match(linked.stderr, /^ublk-supervisor: using runtime directory \S+ failed: [^\n]+$/);
    await chmod(config, 0o666);
    for (const command of ['start', 'check']) {
      const { code, stderr } = await run(process.execPath, [cli, command, config]);
      assert.equal(code, 78);
      assert.match(stderr, /^ublk-supervisor: reading configuration \S+ failed: others may write to \S+config\.json; /);
    }
  });

  await t.test('F4 terminal escapes of a backend and in arguments', async () => {
    await run('dd', ['if=/dev/zero', 'of=/dev/ublkb2', 'bs=4k', 'seek=256', 'count=1', 'oflag=direct', 'status=none']);
    await served.untilLive('script', 2, 120_000);
    const [status, add] = await Promise.all([
      served.command('status'),
      served.command('add', '/run/\u001b[2J\u009b.mjs', '--name', 'more'),
    ]);
    assert.match(status.stdout, /^ {2}last exit .*\\u001b\[2J\\u009b2J\\u000alast: live/m);
    assert.match(add.stderr, /^ublk-supervisor: loading backend \/run\/\\u001b\[2J\\u009b\.mjs failed: /);
    assert.equal(add.code, 1);
    for (const text of [status.stdout, add.stderr, served.log]) {
      assert.doesNotMatch(text, /[\0-\x09\x0b-\x1f\x7f-\x9f]/);
      assert.doesNotMatch(text, /^last: live/m);
    }
  });

  await witness.end();
  assert.equal(await served.terminate(), 0);
  assert.ok(!existsSync('/dev/shm/ublk-supervisor/more.ram'));
  await assertNothingLeft(SUPERVISOR, /I\/O error, dev ublkb2/);
});
