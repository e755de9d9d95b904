// kernels: newest
import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { ruleOfWords } from '../../src/cli/fault-words.js';
import type { FaultHitStatus, FaultRuleStatus } from '../../src/api/status.js';
import { RunningSupervisor, assertNothingLeft, root, run, waitFor, type Finished } from './harness.js';

/** Fault rules, judged from outside: by what a client of the device reads, and by the error that it gets. */

const BLOCK = 4096;
const SIZE = 4 * 2 ** 20;
const runtimeDir = '/run/fault-rules';

const modulePath = '/run/fault-backend/async-ram-backend.mjs';

const devices = [
  { name: 'ram', backend: { type: 'ram', size: SIZE } },
  { name: 'file', backend: { type: 'file', path: '/tmp/fault-rules.img', size: SIZE } },
  { name: 'script', backend: { type: modulePath } },
];

/** One block, as a process of its own, so that it may hang. */
function transfer(direction: 'read' | 'write', path: string, block: number, blocks = 1): Promise<Finished> {
  const place = direction === 'read' ? 'skip' : 'seek';
  const ends =
    direction === 'read'
      ? [`if=${path}`, 'of=/tmp/data', 'iflag=direct']
      : ['if=/tmp/data', `of=${path}`, 'oflag=direct', 'conv=notrunc'];
  return run('dd', [...ends, `bs=${BLOCK * blocks}`, `${place}=${block}`, 'count=1', 'status=none']);
}

async function write(path: string, block: number, letter: string): Promise<Finished> {
  await writeFile('/tmp/data', letter.repeat(BLOCK));
  return transfer('write', path, block);
}

async function read(path: string, block: number): Promise<Buffer> {
  const { code, stderr } = await transfer('read', path, block);
  assert.equal(code, 0, stderr);
  return readFile('/tmp/data');
}

const full = (letter: string): Buffer => Buffer.from(letter.repeat(BLOCK));

function wrongBits(data: Buffer, letter: string): number {
  let wrong = 0;
  for (const byte of data) for (let bits = byte ^ letter.charCodeAt(0); bits !== 0; bits &= bits - 1) wrong++;
  return wrong;
}

test('fault rules', { timeout: 1_100_000 }, async (t) => {
  await mkdir(dirname(modulePath), { mode: 0o755 });
  await copyFile(join(root, 'test/vm/async-ram-backend.js'), modulePath);
  const settings = { faults: [], requestTimeout: '3s', recovery: { maxRestarts: 1000 } };
  const configured = [
    ...devices.map((device) => ({ ...device, ...settings })),
    { name: 'plain', backend: { type: 'null', size: SIZE } },
    {
      name: 'ruled',
      backend: { type: 'ram', size: SIZE },
      requestTimeout: settings.requestTimeout,
      faults: [{ id: 'bad', do: { badBlocks: { at: ['8KiB+4KiB'] } } }],
    },
  ];
  let served = await RunningSupervisor.start(configured, { runtimeDir });
  const pathOf = new Map((await served.status()).devices.map(({ name, path }) => [name, path ?? '']));
  const { dataPath, choices } = await served.device('ruled');
  assert.equal(dataPath, 'copy');
  assert.ok(choices.some(({ why }) => why.includes('fault rules')));

  /** Over the socket: a start of the command line takes seconds in an emulated guest. */
  const call = async (method: string, path: string, body?: unknown): Promise<unknown> => {
    const answer = await served.api(method, `/v1/devices/${path}`, body);
    assert.ok(answer.status < 300, JSON.stringify(answer.body));
    return answer.body;
  };
  const add = async (name: string, ...words: readonly string[]): Promise<unknown> =>
    call('POST', `${name}/faults`, ruleOfWords(words));
  const clear = (name: string): Promise<unknown> => call('DELETE', `${name}/faults`);
  const rules = async (name: string): Promise<readonly FaultRuleStatus[]> =>
    ((await call('GET', `${name}/faults`)) as { readonly rules: readonly FaultRuleStatus[] }).rules;
  const hitsOf = async (name: string): Promise<number> => (await rules(name)).reduce((sum, { hits }) => sum + hits, 0);

  for (const { name } of devices) {
    const path = pathOf.get(name) ?? '';
    const use = async (rule: readonly string[], act: () => Promise<void>): Promise<void> => {
      await add(name, ...rule);
      try {
        await act();
      } finally {
        await clear(name);
      }
    };

    await t.test(`${name}: an error is the client's, in its range, with its errno, so often`, async () => {
      await write(path, 2, 'a');
      await use(['do=error:EIO', 'on=read', 'range=8KiB+4KiB', 'count=2'], async () => {
        assert.deepEqual(await read(path, 1), await read(path, 1));
        for (let i = 0; i < 2; i++) assert.match((await transfer('read', path, 2)).stderr, /Input\/output error/);
        assert.deepEqual(await read(path, 2), full('a'));
        assert.equal(await hitsOf(name), 2);
      });
      await use(['do=error:ENOSPC', 'on=write'], async () => {
        assert.match((await write(path, 2, 'b')).stderr, /No space left on device/);
      });
      assert.deepEqual(await read(path, 2), full('a'));
    });

    await t.test(`${name}: dropped, torn, misdirected and corrupted writes`, async () => {
      await write(path, 4, 'a');
      await use(['do=drop', 'on=write'], async () => assert.equal((await write(path, 4, 'b')).code, 0));
      assert.deepEqual(await read(path, 4), full('a'));
      await use(['do=torn:1'], async () => assert.equal((await write(path, 4, 'b')).code, 0));
      assert.deepEqual(await read(path, 4), Buffer.from('b'.repeat(512) + 'a'.repeat(BLOCK - 512)));
      await use(['do=torn:7:error'], async () =>
        assert.match((await write(path, 4, 'c')).stderr, /Input\/output error/),
      );
      assert.deepEqual(await read(path, 4), Buffer.from('c'.repeat(7 * 512) + 'a'.repeat(512)));
      await write(path, 6, 'a');
      await use(['do=misdirect:8KiB', 'on=write'], async () => assert.equal((await write(path, 4, 'm')).code, 0));
      assert.deepEqual(await read(path, 6), full('m'));
      await use(['do=corrupt:byte:5:120', 'on=write'], async () => assert.equal((await write(path, 4, 'd')).code, 0));
      assert.equal((await read(path, 4)).toString().replaceAll('d', ''), 'x');
    });

    await t.test(`${name}: a corrupted read is wrong in so many bits, and the disk is right`, async () => {
      await write(path, 8, 'a');
      await use(['do=corrupt:bits:3', 'on=read'], async () => assert.equal(wrongBits(await read(path, 8), 'a'), 3));
      await use(['do=corrupt:bits:2:stuck', 'on=read', 'per=sector', 'probability=0.5', 'seed=3'], async () => {
        const first = await read(path, 8);
        assert.ok(wrongBits(first, 'a') > 0);
        assert.deepEqual(await read(path, 8), first);
      });
      assert.deepEqual(await read(path, 8), full('a'));
    });

    await t.test(`${name}: bad blocks are good again when they were written; a full device is full`, async () => {
      await use(['do=badBlocks:40KiB+4KiB:1'], async () => {
        assert.match((await transfer('read', path, 10)).stderr, /Input\/output error/);
        assert.match((await write(path, 10, 'a')).stderr, /Input\/output error/);
        assert.equal((await write(path, 10, 'b')).code, 0);
        assert.deepEqual(await read(path, 10), full('b'));
      });
      await use(['do=full:8KiB', 'on=write'], async () => {
        for (let i = 0; i < 2; i++) assert.equal((await write(path, 12, 'a')).code, 0);
        assert.match((await write(path, 12, 'b')).stderr, /No space left on device/);
      });
    });

    await t.test(`${name}: what is short is completed by the kernel`, async () => {
      await writeFile('/tmp/data', Buffer.concat([full('a'), full('b'), full('c'), full('d')]));
      assert.equal((await transfer('write', path, 3, 4)).code, 0);
      await use(['do=short'], async () => {
        assert.equal((await transfer('read', path, 3, 4)).code, 0);
        assert.deepEqual(await readFile('/tmp/data'), Buffer.concat([full('a'), full('b'), full('c'), full('d')]));
        assert.ok((await hitsOf(name)) > 1);
      });
    });

    await t.test(`${name}: a request is late by what was asked for, at least`, async () => {
      for (const delay of ['delay:400ms', 'delay:uniform:400ms:500ms', 'delay:samples:400ms,450ms']) {
        await use([`do=${delay}`, 'on=read'], async () => {
          const began = performance.now();
          await read(path, 2);
          assert.ok(performance.now() - began >= 400);
        });
      }
    });

    await t.test(
      `${name}: a hang ends with its rule, and only one that is to counts as one of the backend`,
      async () => {
        const { generation } = await served.device(name);
        let ended = false;
        await add(name, 'id=hold', 'do=hang', 'on=write');
        const writing = write(path, 14, 'h').finally(() => {
          ended = true;
        });
        await waitFor('the hang', async () => (await hitsOf(name)) === 1);
        // That takes the request time-out, which is the same for both.
        await add('ruled', 'id=real', 'do=hang:watchdog', 'on=read');
        const reading = transfer('read', pathOf.get('ruled') ?? '', 9);
        await waitFor('a hang being seen', async () =>
          (await served.device('ruled')).reason?.includes('read of 8 sectors'),
        );
        assert.equal(ended, false);
        assert.deepEqual(
          [(await served.device(name)).generation, (await served.device(name)).reason],
          [generation, null],
        );
        await call('DELETE', `${name}/faults/hold`);
        assert.equal((await writing).code, 0);
        assert.deepEqual(await read(path, 14), full('h'));
        await call('DELETE', 'ruled/faults/real');
        assert.equal((await reading).code, 0);
      },
    );

    await t.test(`${name}: a crash before and after the backend, a torn write that ends in one, a stop`, async () => {
      // Each at a place of its own: three crashes of one request would have it refused.
      for (const [index, [letter, rule]] of Object.entries({
        a: ['do=crash:before', 'on=write', 'count=1'],
        b: ['do=crash:after', 'on=write', 'count=1'],
        c: ['do=torn:1:crash', 'count=1'],
        d: ['do=stop', 'on=write', 'count=1'],
      }).entries()) {
        const before = await served.device(name);
        await use(rule, async () => {
          const { code, stderr } = await write(path, 16 + index, letter);
          assert.equal(code, 0, stderr);
          assert.equal(await hitsOf(name), 1);
        });
        const after = await served.untilLive(name, before.recoveries + 1);
        assert.equal(after.lastExit?.signal, letter === 'd' ? 'SIGKILL' : 'SIGABRT');
        assert.deepEqual(await read(path, 16 + index), full(letter));
      }
    });
  }

  await t.test('the same seed and requests have the same hits, another seed others', async () => {
    const hitsWith = async (name: string, seed: number): Promise<unknown> => {
      await add(name, 'id=chance', 'do=error:EIO', 'on=read', 'probability=0.5', `seed=${seed}`);
      for (let block = 0; block < 24; block++) await transfer('read', pathOf.get(name) ?? '', block);
      const { hits: all } = (await call('GET', `${name}/fault-log`)) as { readonly hits: readonly FaultHitStatus[] };
      const hits = all.filter(({ rule }) => rule === 'chance');
      await clear(name);
      return hits.map(({ match, operation, offset, length }) => ({ match, operation, offset, length }));
    };
    const first = await hitsWith('ram', 1);
    assert.deepEqual(await hitsWith('file', 1), first);
    assert.notDeepEqual(await hitsWith('script', 2), first);
  });

  await t.test('a rule acts while its file is there, and once another rule has hit', async () => {
    const path = pathOf.get('ram') ?? '';
    await add('ram', 'id=file', 'do=error:EIO', 'on=read', 'whileFile=/tmp/fault');
    await add('ram', '{"id":"later","do":{"error":"ENOSPC"},"on":["write"],"afterHitOf":"file"}');
    assert.equal((await write(path, 2, 'a')).code, 0);
    const active = async (): Promise<boolean | undefined> =>
      (await rules('ram')).find(({ id }) => id === 'file')?.active;
    await writeFile('/tmp/fault', '');
    await waitFor('the rule seeing the file', active);
    assert.match((await transfer('read', path, 2)).stderr, /Input\/output error/);
    await rm('/tmp/fault');
    await waitFor('the rule seeing that the file is gone', async () => (await active()) === false);
    assert.deepEqual(await read(path, 2), full('a'));
    assert.match((await write(path, 2, 'b')).stderr, /No space left on device/);
    await clear('ram');
  });

  await t.test('rules and counters outlive queue processes, a restart and the supervisor', async () => {
    await add('file', 'id=mine', 'do=error:EIO', 'on=read', 'range=8KiB+4KiB');
    const path = pathOf.get('file') ?? '';
    const bad = async (hits: number): Promise<void> => {
      assert.match((await transfer('read', path, 2)).stderr, /Input\/output error/);
      assert.equal(await hitsOf('file'), hits);
    };
    await bad(1);
    const { recoveries, queues } = await served.device('file');
    process.kill(queues[0]?.pid ?? 0, 'SIGKILL');
    await served.untilLive('file', recoveries + 1);
    await bad(2);
    assert.equal((await served.command('restart', 'file')).code, 0);
    await bad(3);
    process.kill(served.pid, 'SIGKILL');
    await served.exit;
    served = await RunningSupervisor.start(configured, { runtimeDir });
    await bad(4);
    await call('DELETE', 'file/faults/mine');
    assert.deepEqual((await read(path, 2)).length, BLOCK);
  });

  await t.test('rules of the configuration are there from the first request on', async () => {
    const path = pathOf.get('ruled') ?? '';
    assert.match((await transfer('read', path, 2)).stderr, /Input\/output error/);
    assert.equal((await rules('ruled'))[0]?.id, 'bad');
  });

  await t.test('the command adds, lists and removes rules, and logs their hits', async () => {
    const fault = async (...words: readonly string[]): Promise<string> => {
      const { code, stdout, stderr } = await served.command('fault', ...words);
      assert.equal(code, 0, stderr);
      return stdout;
    };
    assert.equal(await fault('add', 'ram', 'id=mine', 'on=read', 'do=error:EIO', 'count=1'), 'mine');
    assert.match((await transfer('read', pathOf.get('ram') ?? '', 3)).stderr, /Input\/output error/);
    const rule = { id: 'mine', on: ['read'], do: { error: 'EIO' }, count: 1, active: true, matches: 1, hits: 1 };
    assert.deepEqual(JSON.parse(await fault('list', 'ram', '--json')), { rules: [rule] });
    assert.match(await fault('list', 'ram'), /^mine +yes +1 +1 +\{"on"/m);
    const last = JSON.parse((await fault('log', 'ram')).split('\n').at(-1) ?? '') as FaultHitStatus;
    assert.deepEqual([last.rule, last.operation, last.offset, last.length], ['mine', 'read', 3 * BLOCK, BLOCK]);
    assert.match((await served.command('status')).stdout, /fault {5}mine, hits: 1/);
    await fault('del', 'ram', 'mine');
    assert.deepEqual(await rules('ram'), []);
  });

  await t.test('bad rules are refused by name and change nothing', async () => {
    const refused = async (pattern: RegExp, name: string, ...words: readonly string[]): Promise<void> => {
      await assert.rejects(add(name, ...words), pattern);
    };
    await refused(/device plain failed: its configuration allows none/, 'plain', 'do=drop');
    await refused(/begins behind the end of the device/, 'ram', 'do=error:EIO', 'range=1GiB+1MiB');
    await refused(/expected a number above 0 and up to 1/, 'ram', 'do=drop', 'probability=2');
    await refused(/expected the name of an errno/, 'ram', 'do=error:EWHAT');
    await refused(/drop makes no sense for read/, 'ram', 'do=drop', 'on=read');
    await refused(/expected one of error, delay/, 'ram', 'do=explode');
    for (let i = 0; i < 4; i++) await add('ram', 'do=badBlocks:0+4MiB');
    await refused(/room for 4096 bad blocks/, 'ram', 'do=badBlocks:0+4MiB');
    await clear('ram');
    for (let i = 0; i < 64; i++) await served.api('POST', '/v1/devices/ram/faults', { do: 'drop', on: ['discard'] });
    await refused(/at most 64 rules/, 'ram', 'do=drop');
    assert.equal((await rules('ram')).length, 64);
    await clear('ram');
    assert.deepEqual(await rules('plain'), []);
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir, /I\/O error, dev ublkb|critical space allocation error, dev ublkb/);
});
