// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, lstatSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { copyFile, mkdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { memoryFileOf } from '../../backends/module/memory-file.js';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { RunningSupervisor, assertNothingLeft, ok, processesNamed, root, waitFor } from './harness.js';
import { memoryOf } from './ram-data.js';
import { Witness } from './witness.js';

/** Backends in JavaScript that do what they must not: the client sees a documented errno or a pause, others nothing. */

const DIRECTORY = '/run/backends';
const BLOCK = 4096;
/** What the kernel says of requests that a backend fails on purpose. */
const REFUSED = /(I\/O|timeout|critical space allocation) error, dev ublkb/;
/** Ample for queue processes that boot node on a busy emulated machine. */
const RECOVERY_TIMEOUT_MS = 120_000;

interface Faulty {
  readonly faultNames: readonly string[];
  readonly deathNames: readonly string[];
}

const answers: Readonly<Record<string, { readonly code: string | null; readonly message?: RegExp }>> = {
  throwsErrno: { code: 'ENOSPC' },
  rejectsErrno: { code: 'ETIMEDOUT' },
  throwsUnknownErrno: { code: 'EIO' },
  throws: { code: 'EIO', message: /^TypeError: no such luck$/ },
  rejects: { code: 'EIO', message: /^Error: much later$/ },
  throwsNothing: { code: 'EIO', message: /^undefined$/ },
  answersNothing: { code: 'EIO', message: /a request of 4096 bytes was answered with undefined/ },
  answersShort: { code: 'EIO', message: /answered with 3584/ },
  answersLong: { code: 'EIO', message: /answered with 4097/ },
  answersNaN: { code: 'EIO', message: /answered with NaN/ },
  answersText: { code: 'EIO', message: /answered with 4096/ },
  answersTwice: { code: null },
};

const hang = /a read of 8 sectors at \d+ is unanswered after (?:[3-9]|\d\d)/;

const exits: Readonly<Record<string, { readonly signal?: string; readonly code?: number; readonly reason?: RegExp }>> =
  {
    uncaught: { code: 1, reason: /^RangeError: out of nowhere$/ },
    unhandled: { code: 1, reason: /^Error: nobody waits$/ },
    exits: { code: 0 },
    aborts: { signal: 'SIGABRT' },
    segfaults: { signal: 'SIGSEGV' },
    exhaustsTheHeap: { signal: 'SIGABRT', reason: /^its JavaScript heap was full$/ },
    neverAnswers: { signal: 'SIGKILL', reason: hang },
    loops: { signal: 'SIGKILL', reason: hang },
  };

test('backends that misbehave', async (t) => {
  await mkdir(DIRECTORY, { mode: 0o755 });
  const faultyPath = join(DIRECTORY, 'faulty.mjs');
  await copyFile(join(root, 'test/vm/faulty-backend.js'), faultyPath);
  const { faultNames, deathNames } = (await import(faultyPath)) as Faulty;
  const brittlePath = join(DIRECTORY, 'brittle.mjs');
  const brittle = (body: string) => writeFile(brittlePath, body, { mode: 0o644 });
  const goodBackend = `import { spawnSync } from 'node:child_process';
  console.log('a line\\nand half');
  console.error('an error');
  spawnSync('sh', ['-c', 'echo of another program; echo its error >&2'], { stdio: 'inherit' });
  export default { name: 'brittle', open: () => ({
    size: 65536, read: (buffer) => { buffer.fill(7); return buffer.length; }, write: (buffer) => buffer.length }) };`;
  await brittle(goodBackend);

  const recovery = { maxRestarts: 100 };
  const served = await RunningSupervisor.start([
    { name: 'witness', backend: { type: 'ram', size: '16MiB' } },
    // To fill the heap takes a minute where others want the CPUs, too.
    { name: 'faulty', requestTimeout: '10min', recovery, backend: { type: faultyPath } },
    { name: 'hanging', requestTimeout: '3s', recovery, backend: { type: faultyPath } },
    { name: 'brittle', recovery, backend: { type: brittlePath } },
  ]);
  const pathOf = async (name: string): Promise<string> => (await served.device(name)).path ?? assert.fail(served.log);
  const witness = await Witness.of(await pathOf('witness'));
  const disk = await DirectFile.open(await pathOf('faulty'));

  for (const [index, name] of faultNames.entries()) {
    await t.test(`a backend that ${name}`, async () => {
      const { code, message } = answers[name] ?? assert.fail(`no answer to ${name}`);
      const outcome = await disk.read(index * BLOCK, BLOCK).then(
        () => null,
        (error: unknown) => (error as NodeJS.ErrnoException).code,
      );
      assert.equal(outcome, code);
      const { generation, lastBackendError, lastExit, state } = await served.device('faulty');
      assert.deepEqual([generation, lastExit, state], [1, null, 'live'], 'the queue process did not survive');
      // One message a second is passed on, so the error may be an earlier one.
      if (message !== undefined) assert.ok(lastBackendError?.stack !== undefined);
    });
  }

  await t.test('what they said is in status and in the log', async () => {
    await served.logs(/a read of 8 sectors at [0-9]+ of device faulty failed with EIO: TypeError: no such luck/);
    const { lastBackendError } = await served.device('faulty');
    assert.equal(lastBackendError?.queue, 0);
    await served.logs(/faulty-backend|faulty\.mjs/);
  });

  await t.test('what they print is lines of the log, with the device', async () => {
    for (const [message, level, queue] of [
      ['a line', 'info', 0],
      ['and half', 'info', 0],
      ['an error', 'warn', 0],
      ['of another program', 'warn', undefined],
      ['its error', 'warn', undefined],
    ] as const) {
      await served.logs(new RegExp(`"msg":"${message}"`));
      const [line] = served.log.split('\n').filter((text) => text.includes(`"msg":"${message}"`));
      const said = JSON.parse(line ?? '') as { level: string; device: string; queue?: number };
      assert.deepEqual([said.level, said.device, said.queue], [level, 'brittle', queue]);
    }
  });

  const hangingDisk = await DirectFile.open(await pathOf('hanging'));
  const generations = { faulty: 1, hanging: 1 };
  for (const [index, name] of deathNames.entries()) {
    await t.test(`A8 B4 a backend that ${name}`, async () => {
      const expected = exits[name] ?? assert.fail(`no exit for ${name}`);
      const on = expected.reason === hang ? 'hanging' : 'faulty';
      const offset = (faultNames.length + index) * BLOCK;
      const [data, device] = await Promise.all([
        (on === 'hanging' ? hangingDisk : disk).read(offset, BLOCK),
        served.untilGeneration(on, ++generations[on], RECOVERY_TIMEOUT_MS),
      ]);
      assert.equal(data.length, BLOCK);
      const { lastExit } = device;
      assert.deepEqual([lastExit?.signal, lastExit?.code], [expected.signal ?? null, expected.code ?? null]);
      if (expected.reason) assert.match(lastExit?.reason ?? '', expected.reason);
      // Generations that die young are started ever more slowly, which is not what this test is about.
      assert.equal((await served.api('POST', `/v1/devices/${on}/recover`)).status, 200);
      if (expected.code === 1) assert.match(lastExit?.stack ?? '', /faulty\.mjs/);
      if (name === 'loops') assert.match(lastExit?.stack ?? '', /^loops \(file:.*\/faulty\.mjs:\d+:\d+\)$/m);
    });
  }

  await t.test('a module that no longer loads leaves its device waiting until it is mended', async () => {
    const before = await served.device('brittle');
    await brittle('export default {{{');
    process.kill(before.queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
    const reading = DirectFile.open(before.path ?? '').then(async (file) => {
      await using opened = file;
      return await opened.read(0, BLOCK);
    });
    const degraded = await waitFor(
      'the device being degraded',
      async () => {
        const device = await served.device('brittle');
        return device.state === 'degraded' && device;
      },
      RECOVERY_TIMEOUT_MS,
    );
    assert.match(
      degraded.reason ?? '',
      /loading backend \/run\/backends\/brittle\.mjs failed: Unexpected token '\{'; line 1: export default \{\{\{/,
    );
    // Renamed into place, as editors do.
    await writeFile(`${brittlePath}.new`, goodBackend, { mode: 0o644 });
    await rename(`${brittlePath}.new`, brittlePath);
    assert.deepEqual(await reading, Buffer.alloc(BLOCK, 7));
    await served.untilLive('brittle', 1);
    const complaints = served.log.split('\n').filter((line) => line.includes('device brittle is degraded'));
    assert.equal(complaints.length, 1, 'it was said again and again');
  });

  await t.test('A8 a backend that always has something to do has timers, and does not hang', async () => {
    const busyPath = join(DIRECTORY, 'busy.mjs');
    await copyFile(join(root, 'test/vm/busy-backend.js'), busyPath);
    const { path } = await served.add({
      name: 'busy',
      queues: 2,
      requestTimeout: '5s',
      recovery,
      backend: { type: busyPath },
    });
    await ok('fio', [
      ...['--name=busy', `--filename=${path ?? ''}`, '--rw=randread', '--bs=4k', '--direct=1', '--ioengine=io_uring'],
      ...['--iodepth=128', '--numjobs=2', '--thread', '--time_based', '--runtime=20', '--cpus_allowed=1'],
    ]);
    const { recoveries: hangs, lastExit: none } = await served.device('busy');
    assert.deepEqual([hangs, none], [0, null]);
    const late = [0, 1].map((queue) => memoryOf('busy', `late${queue}`, 8).readDoubleLE());
    t.diagnostic(`timers came at most ${late.map((ms) => ms.toFixed(0)).join(' and ')} ms late`);
    assert.ok(late.every((ms) => ms > 0));
    await served.remove('busy');
    assert.ok(existsSync('/run/closed-0') && existsSync('/run/closed-1'), 'close() was cut off');
  });

  await t.test('what cannot be served is refused with one line', async () => {
    const add = async (type: string): Promise<string> => {
      const { status, body } = await served.api('POST', '/v1/devices', { name: 'bad', backend: { type } });
      assert.ok(status >= 400, JSON.stringify(body));
      return JSON.stringify(body);
    };
    const module = async (name: string, text: string, mode = 0o644): Promise<string> => {
      await writeFile(join(DIRECTORY, name), text, { mode });
      return join(DIRECTORY, name);
    };
    assert.match(await add(join(DIRECTORY, 'absent.mjs')), /loading backend .*absent\.mjs failed: no such file/);
    assert.match(await add(await module('empty.mjs', '')), /its default export is no backend/);
    assert.match(
      await add(await module('dies.mjs', 'process.abort()')),
      /the process that tried it was killed by SIGABRT/,
    );
    await mkdir(join(DIRECTORY, 'open'), { mode: 0o777 });
    await writeFile('/tmp/open.mjs', goodBackend, { mode: 0o644 });
    assert.match(await add('/tmp/open.mjs'), /others may write to \/tmp/);
  });

  await witness.end();
  const { recoveries, lastExit } = await served.device('witness');
  assert.deepEqual([recoveries, lastExit], [0, null]);
  for (const file of [disk, hangingDisk]) await file[Symbol.asyncDispose]();
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir, REFUSED);
});

test('a module that its author works on', async (t) => {
  await mkdir(DIRECTORY, { recursive: true, mode: 0o755 });
  const type = join(DIRECTORY, 'draft.mjs');
  await writeFile(type, 'export default {', { mode: 0o644 });
  const served = await RunningSupervisor.start(
    [{ name: 'draft', queues: 1, requestTimeout: '1h', backend: { type } }],
    {
      args: ['--watch'],
    },
  );

  await t.test('is tried until it loads, also when it was broken at the start', async () => {
    const { state, reason } = await served.device('draft');
    assert.equal(state, 'failed');
    assert.match(reason ?? '', /loading backend .*draft\.mjs failed: Unexpected end of input/);
    await writeFile(
      type,
      'export default { name: "draft", open: () => ({ size: 65536, read: (buffer) => buffer.length }) };',
    );
    await served.untilLive('draft');
  });

  await t.test('can be looked at with a debugger', async () => {
    const { queues, recoveries } = await served.device('draft');
    process.kill(queues[0]?.pid ?? assert.fail('no process'), 'SIGUSR1');
    await waitFor('the debugger', () => served.log.includes('Debugger listening on ws://127.0.0.1:9229/'));
    const [target] = (await (await fetch('http://127.0.0.1:9229/json')).json()) as [{ readonly title: string }];
    assert.match(target.title, /queue-proc\.js$/);
    assert.equal((await served.device('draft')).recoveries, recoveries);
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir, REFUSED);
});

/** Removes what a user has in /dev/shm, as systemd-logind does when the user logs out (RemoveIPC). */
function logOut(uid: number, directory = '/dev/shm'): void {
  for (const name of readdirSync(directory)) {
    const path = join(directory, name);
    const { uid: owner } = lstatSync(path);
    if (statSync(path).isDirectory()) logOut(uid, path);
    if (owner === uid) rmSync(path, { recursive: true });
  }
}

test('E6 shared memory is of one device, and lasts', async (t) => {
  await mkdir(DIRECTORY, { recursive: true, mode: 0o755 });
  const module = join(DIRECTORY, 'memory.mjs');
  await writeFile(
    module,
    `export default { name: 'memory', open: (_options, context) => {
      const disk = context.sharedMemory('disk', 65536);
      return {
        size: disk.length,
        read: (buffer, offset) => disk.copy(buffer, 0, offset, offset + buffer.length),
        write: (buffer, offset) => buffer.copy(disk, offset),
      };
    } };`,
    { mode: 0o644 },
  );
  const devices = [{ name: 'kept', user: 1000, queues: 2, backend: { type: module } }];
  const runtimeDir = '/run/supervisor-one';
  const pattern = Buffer.alloc(BLOCK, 'kept');
  let served = await RunningSupervisor.start(devices, { runtimeDir });
  const path = (await served.device('kept')).path ?? assert.fail(served.log);
  const read = async (): Promise<Buffer> => {
    await using disk = await DirectFile.open(path);
    return await disk.read(BLOCK, BLOCK);
  };
  const afterKill = async (): Promise<Buffer> => {
    const { queues, generation } = await served.device('kept');
    process.kill(queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
    await served.untilGeneration('kept', generation + 1, RECOVERY_TIMEOUT_MS);
    return await read();
  };
  {
    await using disk = await DirectFile.open(path);
    await disk.write(BLOCK, pattern);
  }

  await t.test('F3 a device of the same name of another supervisor does not get it', async () => {
    const other = await RunningSupervisor.start(devices, { runtimeDir: '/run/supervisor-two' });
    assert.match((await other.device('kept')).reason ?? '', /kept\.shared is in use by another process; use another/);
    assert.equal(await other.terminate(), 0);
    assert.ok(existsSync(memoryFileOf('kept')));
    assert.deepEqual(await read(), pattern);
  });

  await t.test('it outlives the logout of the user that its processes run as', async () => {
    logOut(1000);
    assert.deepEqual(await afterKill(), pattern);
    assert.ok(existsSync(memoryFileOf('kept')));
  });

  await t.test('A3 what is open is served whatever became of its name, by the next supervisor too', async () => {
    rmSync(memoryFileOf('kept'));
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    served = await RunningSupervisor.start(devices, { runtimeDir });
    assert.deepEqual(await afterKill(), pattern);
  });

  await t.test('A4 what is gone is not made anew under whoever uses the device', async () => {
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    for (const pid of processesNamed('ublk-zygote')) process.kill(pid, 'SIGKILL');
    await waitFor('the end of all processes', () => processesNamed('ublk/').length === 0);
    served = await RunningSupervisor.start(devices, { runtimeDir });
    const { state, reason } = await served.device('kept');
    assert.equal(state, 'degraded');
    assert.match(
      reason ?? '',
      /opening shared memory .*kept\.shared failed: no such file.*; restore it, or stop the device/,
    );
    assert.ok(!existsSync(memoryFileOf('kept')));
    assert.equal((await served.command('stop', 'kept', '--force')).code, 0);
    assert.equal(await served.terminate(), 0);
    await assertNothingLeft(runtimeDir, REFUSED);
  });
});

/** What a supervisor that imports this says to a queue process waits for a file. A probe, which is first, hears at once. */
const LET_GO = '/run/let-go';
const lateWords = `
import { existsSync } from 'node:fs';
import { Socket } from 'node:net';
const { write } = Socket.prototype;
let loads = 0;
Socket.prototype.write = function (...args) {
  const isFrame = Buffer.isBuffer(args[0]) && args[0].length > 8 && args[0].readUInt16LE(0) === 0x7562;
  if (!isFrame || ++loads === 1) return write.apply(this, args);
  const timer = setInterval(() => {
    if (!existsSync('${LET_GO}')) return;
    clearInterval(timer);
    write.apply(this, args);
  }, 10);
  return true;
};`;

test('a queue process that is told late what to load waits for that', async () => {
  const module = join(DIRECTORY, 'memory.mjs');
  await writeFile('/run/late-words.mjs', lateWords);
  const served = await RunningSupervisor.start([], { nodeOptions: ['--import', '/run/late-words.mjs'] });
  const added = served.add({ name: 'late', queues: 1, backend: { type: module } });
  const isWaiting = (pid: number): boolean => {
    const [title, where] = ['cmdline', 'wchan'].map((what) => readFileSync(`/proc/${pid}/${what}`, 'latin1'));
    return title?.startsWith('ublk/') === true && where?.includes('epoll') === true;
  };
  // Its title is its own when the program runs, and it waits in the event loop when that has begun to listen.
  const pid = await waitFor(
    'the queue process waiting',
    () => processesNamed('ublk/').find(isWaiting),
    RECOVERY_TIMEOUT_MS,
  );
  await writeFile(LET_GO, '');
  const { generation, lastExit, queues } = await added;
  assert.deepEqual([generation, lastExit, queues[0]?.pid], [1, null, pid]);
  await served.remove('late');
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir, REFUSED);
});
