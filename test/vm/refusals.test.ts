// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  COMMAND_TIMEOUT_MS,
  RunningSupervisor,
  cli,
  ok,
  processesNamed,
  root,
  run,
  shell,
  supervisorCommand,
  waitFor,
  zygoteOf,
} from './harness.js';
import type { Finished } from './harness.js';

/** What a supervisor refuses to begin with, what it never touches, and how its queue processes are confined. */

const configs = await mkdtemp('/tmp/refusals-');
await chmod(configs, 0o755);
const goodConfig = join(configs, 'good.json');
await writeFile(goodConfig, JSON.stringify({ devices: [{ name: 'n', backend: { type: 'null', size: '1GiB' } }] }));
const newRuntimeDir = join(configs, 'run');

const start = (config: string, runtimeDir = newRuntimeDir): Promise<Finished> =>
  supervisorCommand('start', config, '--runtime-dir', runtimeDir);
const startUnder = (wrapper: string, ...args: readonly string[]): Promise<Finished> =>
  run(
    wrapper,
    [...args, process.execPath, cli, 'start', goodConfig, '--runtime-dir', newRuntimeDir],
    COMMAND_TIMEOUT_MS,
  );

/** A refusal is one line on stderr, and nothing was made. */
function assertRefused({ code, stdout, stderr }: Finished, expectedCode: number, expected: RegExp, lines = 1): void {
  assert.match(stderr, expected);
  assert.equal(code, expectedCode, stderr);
  assert.equal(stdout, '');
  assert.equal(stderr.split('\n').filter((line) => line.startsWith('ublk-supervisor: ')).length, lines, stderr);
  assert.equal(stderr.split('\n').length, lines, stderr);
}

function assertNothingMade(): void {
  assert.ok(!existsSync(newRuntimeDir), 'the runtime directory was made');
  assert.deepEqual(
    readdirSync('/dev').filter((name) => /^ublk[bc][0-9]/.test(name)),
    [],
  );
}

test('C1 a broken configuration makes nothing', async () => {
  const device = { name: 'a', backend: { type: 'ram', size: 0 } };
  const path = join(configs, 'broken.json');
  await writeFile(path, JSON.stringify({ devices: [{ ...device, queues: 65536, dept: 3 }] }));
  const problems = [
    /^ublk-supervisor: \S+\/broken\.json: devices\[0\]\.queues: expected 1 to 128, got 65536$/m,
    /^ublk-supervisor: \S+\/broken\.json: devices\[0\]\.backend\.size: expected [^\n]+, got 0$/m,
    /^ublk-supervisor: \S+\/broken\.json: devices\[0\]: unknown key "dept"; allowed: name, [^\n]+$/m,
  ];
  const refused = await start(path);
  for (const problem of problems) assertRefused(refused, 78, problem, problems.length);
  assertNothingMade();
});

test('D4 who may not serve ublk devices is told why', async () => {
  const refusals = await Promise.all([
    startUnder('setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups'),
    startUnder('setpriv', '--bounding-set', '-sys_admin'),
    startUnder('setpriv', '--bounding-set', '-setpcap,-sys_resource'),
  ]);
  assertRefused(refusals[0], 77, /: \/dev\/ublk-control: permission denied \(EACCES\); run as root$/);
  assertRefused(
    refusals[1],
    77,
    /: privilege: without CAP_SYS_ADMIN; run as root, in a container with these capabilities$/,
  );
  assertRefused(refusals[2], 77, /: privilege: without CAP_SETPCAP, CAP_SYS_RESOURCE; run as root, in a container /);
  assertNothingMade();
});

/** Becomes what its arguments say in a mount namespace with a /dev that nobody makes nodes in, and the /dev/shm of a container. */
const containerDev = [
  'unshare',
  '--mount',
  '--propagation',
  'private',
  'bash',
  '-ec',
  `mkdir -p /run/dev
  mount -t tmpfs -o mode=755 tmpfs /run/dev
  cp -a /dev/{null,zero,full,random,urandom,ublk-control} /run/dev
  mkdir /run/dev/shm
  mount -t tmpfs -o size=64M shm /run/dev/shm
  mount --move /run/dev /dev
  exec "$@"`,
  'bash',
] as const;

test('D4 a container whose /dev is its own has to be allowed to make nodes', async () => {
  const [wrapper, ...args] = containerDev;
  const refused = await startUnder(wrapper, ...args, 'setpriv', '--bounding-set', '-mknod');
  assertRefused(refused, 77, /: \/dev: tmpfs of its own, [^\n]*: without CAP_MKNOD; bind the machine's \/dev [^\n]*$/);
  assertNothingMade();
});

test('a container whose /dev is its own, without CAP_IPC_LOCK', async (t) => {
  const devices = [{ name: 'inside', queues: 2, partitions: true, backend: { type: 'ram', size: '16MiB' } }];
  const under = [
    ...containerDev,
    'setpriv',
    '--bounding-set',
    '-ipc_lock',
    'sh',
    '-c',
    'ulimit -l 64; exec "$@"',
    'sh',
  ];
  const served = await RunningSupervisor.start(devices, { under });
  const inside = (...args: readonly string[]): Promise<Finished> =>
    run('nsenter', ['--mount', `--target=${served.pid}`, ...args]);
  const nodes = async (): Promise<string[]> =>
    (await inside('ls', '/dev')).stdout.split('\n').filter((name) => /^ublk[bc]/.test(name));
  const { id, queues } = await served.device('inside');
  const [block, char] = [`ublkb${String(id)}`, `ublkc${String(id)}`];

  await t.test('its devices are served, and those of a device that is recovered', async () => {
    assert.deepEqual(await nodes(), [block, char]);
    const write = ['dd', 'if=/dev/urandom', `of=/dev/ublk/by-name/inside`, 'bs=64k', 'count=16', 'oflag=direct'];
    assert.equal((await inside(...write)).code, 0);
    process.kill(queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
    await served.untilLive('inside', 1);
    assert.equal((await inside(...write)).code, 0);
  });

  await t.test('their partitions are there as long as they are', async () => {
    const partition = (script: string): Promise<Finished> =>
      inside('sh', '-c', `echo '${script}' | sfdisk --quiet --label dos --no-reread /dev/${block}`);
    await partition('size=4M');
    await waitFor('the partition', async () => (await nodes()).includes(`${block}p1`));
    assert.equal((await inside('dd', `if=/dev/${block}p1`, 'of=/dev/null', 'bs=64k', 'count=4')).code, 0);
    await inside('wipefs', '--all', '--force', `/dev/${block}`);
    await waitFor('the partition going', async () => !(await nodes()).includes(`${block}p1`));
  });

  await t.test('doctor says what is so there', async () => {
    const { stdout } = await inside(process.execPath, cli, 'doctor', '--runtime-dir', served.runtimeDir);
    assert.match(stdout, /^ok +\/dev: tmpfs of its own, in which the nodes of devices are made$/m);
    assert.match(stdout, /^warn +\/dev\/shm: 64M for RAM disks [^\n]*; run: mount -o remount,size=/m);
  });

  await t.test('nodes go with their devices', async () => {
    assert.equal((await served.api('DELETE', '/v1/devices/inside')).status, 200);
    assert.deepEqual(await nodes(), []);
    assert.equal(await served.terminate(), 0);
  });
});

test('D4 without io_uring', async () => {
  await shell('echo 2 > /proc/sys/kernel/io_uring_disabled');
  assertRefused(await start(goodConfig), 69, /: io_uring: disabled for everybody; run: sysctl /);
  await shell('echo 0 > /proc/sys/kernel/io_uring_disabled');
  assertNothingMade();
});

test('a runtime directory that is no good', async () => {
  const open = join(configs, 'open');
  await mkdir(open);
  await chmod(open, 0o777);
  const refusals = await Promise.all([start(goodConfig, join(goodConfig, 'run')), start(goodConfig, open)]);
  assertRefused(refusals[0], 73, /good\.json\/run failed: .*ENOTDIR.*; choose another runtime directory$/);
  assertRefused(refusals[1], 73, /open failed: .*; choose another runtime directory$/);
  assert.deepEqual(readdirSync(open), []);
  assertNothingMade();
});

const firstDevices = [
  { name: 'a', id: 3, queues: 2, backend: { type: 'ram', size: '16MiB' } },
  { name: 'b', backend: { type: 'ram', size: '16MiB' } },
];

/** Writes to the device of `id` and reads it back, past the page cache. */
async function assertUsable(id: number): Promise<void> {
  const path = `/dev/ublkb${id}`;
  await shell('head -c 1M /dev/urandom > /run/written');
  await ok('dd', ['if=/run/written', `of=${path}`, 'bs=64k', 'oflag=direct', 'status=none']);
  await ok('dd', [`if=${path}`, 'of=/run/read', 'bs=64k', 'count=16', 'iflag=direct', 'status=none']);
  await ok('cmp', ['/run/written', '/run/read']);
}

const statusOf = (path: string): Map<string, string> =>
  new Map(
    readFileSync(path, 'utf8')
      .split('\n')
      .map((line) => line.split(/:\s*/, 2) as [string, string]),
  );

// Behind the tests that find no device at all: this one stays until the guest ends.
test('E1 a device that somebody made without privileges is not there for us', async (t) => {
  // With the privilege the kernel would make an ordinary device.
  const program = join(root, 'build/Release/unprivileged_device');
  const foreign = Number(await ok('setpriv', ['--bounding-set', '-sys_admin', program]));
  const runtimeDir = '/run/neighbour';
  const devices = [{ name: 'own', backend: { type: 'ram', size: '16MiB' } }];
  const served = await RunningSupervisor.start(devices, { runtimeDir });
  const { id, queues } = await served.device('own');
  assert.notEqual(id, foreign);
  await assertUsable(id ?? assert.fail());

  await t.test('nor when ours are adopted', async () => {
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    const next = await RunningSupervisor.start(devices, { runtimeDir });
    const adopted = await next.device('own');
    assert.deepEqual([adopted.id, adopted.queues[0]?.pid], [id, queues[0]?.pid]);
    const taken = { name: 'taken', id: foreign, backend: { type: 'null', size: '1MiB' } };
    const { status, body } = await next.api('POST', '/v1/devices', taken);
    assert.equal(status, 409);
    assert.match(JSON.stringify(body), new RegExp(`id ${foreign} is taken; choose another id.*EEXIST`));
    const { stdout } = await next.command('doctor');
    assert.match(stdout, new RegExp(`${foreign}: made without privileges`));
    assert.equal(await next.terminate(), 0);
    assert.deepEqual(processesNamed('ublk'), []);
  });
});

test('with a supervisor running', async (t) => {
  const served = await RunningSupervisor.start(firstDevices, { runtimeDir: '/run/first' });

  await t.test('A7 D2 its queue processes are confined', async () => {
    const pids = (await served.status()).devices.flatMap(({ queues }) => queues.map(({ pid }) => pid));
    assert.equal(pids.length, 3);
    for (const pid of pids) {
      const proc = `/proc/${String(pid)}`;
      const status = statusOf(`${proc}/status`);
      for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) {
        assert.equal(BigInt(`0x${status.get(set) ?? '?'}`), 0n, set);
      }
      assert.equal(status.get('NoNewPrivs'), '1');
      assert.ok(parseInt(status.get('VmLck') ?? '0') > 0, 'no memory is locked');
      assert.equal(readFileSync(`${proc}/oom_score_adj`, 'utf8').trim(), '-1000');
      for (const task of readdirSync(`${proc}/task`)) {
        const stat = readFileSync(`${proc}/task/${task}/stat`, 'utf8');
        // PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, which PR_SET_IO_FLUSHER sets.
        const flags = Number(stat.slice(stat.lastIndexOf(')')).split(' ')[7]);
        assert.equal(flags & 0x180000, 0x180000, `task ${task} is no I/O flusher`);
      }
      // Besides the standard streams: the backend's file and the ring.
      const files = readdirSync(`${proc}/fd`).map((fd) => [Number(fd), readlinkSync(`${proc}/fd/${fd}`)] as const);
      const [input, output, error, ...others] = files.sort(([a], [b]) => a - b).map(([, target]) => target);
      const log = readlinkSync(`/proc/${served.pid}/fd/2`);
      assert.deepEqual([input, output, error], ['/dev/null', '/dev/null', log]);
      assert.match(others.sort().join(' '), /^\/dev\/shm\/ublk-supervisor\/[ab]\.ram anon_inode:\[io_uring\]$/);
    }
    for (const { id } of (await served.status()).devices) {
      assert.equal(readFileSync(`/sys/block/ublkb${String(id)}/partscan`, 'utf8').trim(), '0');
    }
    assert.equal(statSync(served.runtimeDir).mode & 0o7777, 0o750);
    assert.equal(statSync(join(served.runtimeDir, 'control.sock')).mode & 0o7777, 0o660);
  });

  await t.test('F3 a second one for the same runtime directory is refused', async () => {
    const refused = await start(goodConfig, served.runtimeDir);
    assertRefused(refused, 73, /a supervisor is running already: it holds \/run\/first\/lock; /);
    assert.equal((await served.status()).devices.length, 2);
    await assertUsable(3);
  });

  await t.test('E1 its devices are foreign to another, which leaves them alone', async () => {
    const taken = { name: 'taken', id: 3, backend: { type: 'ram', size: '16MiB' } };
    const other = await RunningSupervisor.start([taken, { name: 'fine', backend: { type: 'null', size: '16MiB' } }]);
    const owner = (await served.status()).devices.find(({ id }) => id === 3) ?? assert.fail('no device 3');
    const conflict = new RegExp(
      `id 3 is taken by pid ${zygoteOf(owner)}; choose another id or delete that device \\(EEXIST\\)`,
    );
    const { state, reason, path } = await other.device('taken');
    assert.deepEqual([state, path], ['failed', null]);
    assert.match(reason ?? '', conflict);
    assert.equal((await other.device('fine')).state, 'live');
    assert.equal((await other.api('DELETE', '/v1/devices/taken?force=true')).status, 200);
    const answer = await other.api('POST', '/v1/devices', { ...taken, name: 'more' });
    assert.equal(answer.status, 409);
    assert.match((answer.body as { error: { message: string } }).error.message, conflict);
    assert.equal(await other.terminate(), 0);
    await assertUsable(3);
    const { state: untouched, recoveries } = await served.device('a');
    assert.deepEqual([untouched, recoveries], ['live', 0]);
  });

  await t.test('its devices outlive it, until its successor ends them', async () => {
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    const serving = processesNamed('ublk/');
    assert.equal(serving.length, 3);
    await assertUsable(3);
    const next = await RunningSupervisor.start(firstDevices, { runtimeDir: served.runtimeDir });
    assert.deepEqual(processesNamed('ublk/'), serving);
    assert.equal(await next.terminate(), 0);
    assert.deepEqual(processesNamed('ublk'), []);
  });
});
