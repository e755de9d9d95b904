// kernels: newest
import assert from 'node:assert/strict';
import { copyFile, mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import type { DeviceStatus } from '../../src/api/status.js';
import { Load, verifiedWrites } from './fio.js';
import {
  COMMAND_TIMEOUT_MS,
  RunningSupervisor,
  assertNothingLeft,
  processesNamed,
  root,
  run,
  waitFor,
  zygoteOf,
  signal,
} from './harness.js';

/** A supervisor dies, alone or with what it started, at any moment; its successor goes on with the devices. */

const runtimeDir = '/run/adoption';
const journal = join(runtimeDir, 'devices');
const BLOCK = 4096;
const MIB = 2 ** 20;
const RAM_FILE = '/dev/shm/ublk-supervisor/ram.ram';
const FILE = '/dev/shm/adoption.img';

const moduleDirectory = '/run/adoption-backends';
const modulePath = join(moduleDirectory, 'async-ram-backend.mjs');
const recovery = { maxRestarts: 1000 };
const devices = [
  { name: 'ram', queues: 2, recovery, backend: { type: 'ram', size: '16MiB' } },
  { name: 'file', recovery, backend: { type: 'file', path: FILE, size: '8MiB' } },
  { name: 'script', recovery, backend: { type: modulePath } },
];

const start = (configured: readonly object[] = devices): Promise<RunningSupervisor> =>
  RunningSupervisor.start(configured, { runtimeDir });

async function kill(served: RunningSupervisor): Promise<void> {
  process.kill(served.pid, 'SIGKILL');
  await served.exit;
}

const pids = ({ queues }: DeviceStatus): (number | null)[] => queues.map(({ pid }) => pid);
const writes = ({ queues }: DeviceStatus): number => queues.reduce((sum, { write }) => sum + write.count, 0);
const statesOf = async (served: RunningSupervisor): Promise<string[]> =>
  (await served.status()).devices.map(({ name, state }) => `${name} ${state}`).sort();
const ALL_LIVE = ['file live', 'ram live', 'script live'];

const pattern = Buffer.alloc(BLOCK, 0x5a);

async function writeData({ path, size }: DeviceStatus): Promise<void> {
  await using file = await DirectFile.open(path ?? assert.fail('no path'));
  await file.write(size - BLOCK, pattern);
}

async function assertData({ path, size }: DeviceStatus): Promise<void> {
  await using file = await DirectFile.open(path ?? assert.fail('no path'));
  assert.ok(pattern.equals(await file.read(size - BLOCK, BLOCK)), 'it has other data');
}

test('the successor of a supervisor', { timeout: 1_100_000 }, async (t) => {
  await mkdir(moduleDirectory, { mode: 0o755 });
  await copyFile(join(root, 'test/vm/async-ram-backend.js'), modulePath);
  let served = await start();
  for (const { name } of devices) await writeData(await served.device(name));

  await t.test('A3 adopts what is served: same processes, no pause, counters go on', async () => {
    await served.add({ name: 'extra', backend: { type: 'ram', size: '1MiB' } });
    const before = new Map((await served.status()).devices.map((device) => [device.name, device]));
    const { path } = before.get('ram') ?? assert.fail('no device');
    const job = { name: 'ram', path: path ?? '', size: '4M', depth: 16 };
    const load = new Load((pass) => verifiedWrites(job, pass));
    await kill(served);
    served = await start();
    await load.stop();
    for (const after of (await served.status()).devices) {
      const earlier = before.get(after.name) ?? assert.fail(`${after.name} is new`);
      const facts = ({ id, generation, state, size, dataPath }: DeviceStatus): unknown => [
        id,
        generation,
        state,
        size,
        dataPath,
      ];
      assert.deepEqual(facts(after), facts(earlier));
      assert.deepEqual(pids(after), pids(earlier), after.name);
      assert.ok(writes(after) >= writes(earlier), 'counters began anew');
      assert.deepEqual([after.recoveries, after.lastExit], [0, null]);
    }
    assert.deepEqual(await statesOf(served), ['extra live', ...ALL_LIVE]);
    // What a successor adopted it can also recover, stop and remove.
    const script = await served.device('script');
    process.kill(script.queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
    const recovered = await served.untilLive('script', 1, COMMAND_TIMEOUT_MS);
    assert.equal(recovered.lastExit?.signal, 'SIGKILL');
    assert.equal(recovered.generation, 2);
    await assertData(recovered);
    await served.remove('extra');
    // Its memory is free, and so is its lock.
    await served.add({ name: 'extra', backend: { type: 'ram', size: '2MiB' } });
    await served.remove('extra');
    assert.deepEqual((await readdir(journal)).sort(), ['file.json', 'ram.json', 'script.json']);
  });

  await t.test('A4 recovers what lost its queue processes meanwhile, or everything', async () => {
    await kill(served);
    const [, second] = processesNamed('ublk/0/');
    process.kill(second ?? assert.fail('no process'), 'SIGKILL');
    served = await start();
    assert.deepEqual(await statesOf(served), ALL_LIVE);
    const ram = await served.device('ram');
    assert.equal(ram.lastExit?.signal, 'SIGKILL');
    assert.deepEqual([ram.generation, (await served.device('file')).generation], [2, 1]);
    await kill(served);
    // The nursery ends with its supervisor, and queue processes with their zygotes, maybe before it is their turn.
    for (const pid of processesNamed('ublk')) signal(pid, 'SIGKILL');
    served = await start();
    assert.deepEqual(await statesOf(served), ALL_LIVE);
    for (const device of (await served.status()).devices) await assertData(device);
  });

  await t.test('A5 goes on with a recovery that clients wait for', async () => {
    const { path, queues } = await served.device('script');
    const load = new Load((pass) => verifiedWrites({ name: 'script', path: path ?? '', size: '4M', depth: 16 }, pass));
    process.kill(queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
    await waitFor('the recovery', async () => (await served.device('script')).state === 'recovering');
    await kill(served);
    served = await start();
    await load.stop();
    assert.deepEqual(await statesOf(served), ALL_LIVE);
    await assertData(await served.device('script'));
  });

  await t.test('A4 ends a zygote that hangs, and recovers its device', async () => {
    const zygote = zygoteOf(await served.device('ram'));
    const others = async (): Promise<unknown> => [
      pids(await served.device('file')),
      pids(await served.device('script')),
    ];
    const before = await others();
    await kill(served);
    process.kill(zygote, 'SIGSTOP');
    served = await start();
    assert.deepEqual(await others(), before);
    await served.logs(/connecting to the zygote failed: no answer/);
    assert.ok(!processesNamed('ublk-zygote').includes(zygote));
    assert.deepEqual(await statesOf(served), ALL_LIVE);
    for (const device of (await served.status()).devices) await assertData(device);
  });

  await t.test('A5 takes a device whose resize was not finished with the size that the kernel has', async () => {
    const before = (await served.status()).devices;
    await kill(served);
    const journaled = join(journal, 'ram.json');
    const entry = (await readFile(journaled, 'utf8')).replaceAll(String(16 * MIB), String(24 * MIB));
    await writeFile(journaled, entry);
    // A store grows before everything else.
    const stores = [RAM_FILE, FILE];
    const sizes = await Promise.all(stores.map(async (path) => (await stat(path)).size));
    for (const path of stores) await run('truncate', ['-s', '+8M', path]);
    served = await start();
    const facts = (all: readonly DeviceStatus[]): unknown =>
      new Map(all.map((device) => [device.name, [device.size, pids(device)]]));
    assert.deepEqual(facts((await served.status()).devices), facts(before));
    for (const device of (await served.status()).devices) await assertData(device);
    // The RAM disk's is ours alone, and no longer than it has to be.
    assert.deepEqual((await stat(RAM_FILE)).size, sizes[0]);
    await run('truncate', ['-s', String(sizes[1]), FILE]);
  });

  await t.test('C3 does without the journal: torn, garbage, of another boot, unwritable, missing', async () => {
    const before = pids(await served.device('ram'));
    const damages: readonly (readonly [string, () => Promise<unknown>])[] = [
      [
        'torn, garbage and of another boot',
        async () => {
          await run('truncate', ['-s', '40', join(journal, 'ram.json')]);
          await run('dd', ['if=/dev/urandom', `of=${join(journal, 'file.json')}`, 'bs=1k', 'count=1']);
          await run('sed', ['-i', 's/"boot":"[^"]*"/"boot":"x"/', join(journal, 'script.json')]);
        },
      ],
      [
        'unwritable',
        async () => {
          await rm(journal, { recursive: true });
          await writeFile(journal, 'a file is in its place');
        },
      ],
    ];
    for (const [what, damage] of damages) {
      await kill(served);
      await damage();
      served = await start();
      assert.deepEqual(await statesOf(served), ALL_LIVE, what);
      assert.deepEqual(pids(await served.device('ram')), before, what);
    }
    await served.add({ name: 'unrecorded', backend: { type: 'ram', size: '1MiB' } });
    await served.logs(/writing to \/run\/adoption\/devices failed/);
    await kill(served);
    await rm(journal);
    served = await start();
    await served.logs(/ublk device 3 is of this runtime directory, but neither configuration nor journal name it/);
    // Named again it is what it was.
    await kill(served);
    served = await start([...devices, { name: 'unrecorded', backend: { type: 'ram', size: '1MiB' } }]);
    assert.deepEqual(await statesOf(served), [...ALL_LIVE, 'unrecorded live']);
    await served.remove('unrecorded');
  });

  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(runtimeDir);
});
