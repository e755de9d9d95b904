// kernels: newest
import assert from 'node:assert/strict';
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import type { PlanEntry } from '../../src/api/status.js';
import type { DeviceStatus } from '../../src/api/status.js';
import { underVerifiedWrites } from './fio.js';
import { RunningSupervisor, assertNothingLeft, isLinux, trust } from './harness.js';

/** What changes while a device is served: its processes, its code, its options, its size. Its users see a pause. */

const DIRECTORY = '/run/handover';
const MODULE = join(DIRECTORY, 'letters.mjs');
const BLOCK = 4096;
const MIB = 2 ** 20;
/** Ample for queue processes that boot node on a busy emulated machine. */
const PAUSE_MS = 120_000;

/** A backend that is all one letter, by default `letter`; `open` may say something else. */
const letters = (letter: string, body = ''): string => `export default {
  name: 'letters', options: { safeParse: (data) => ({ success: true, data: { ...data } }) }, open(options) { ${body}
  return { size: options.size ?? ${MIB}, read(buffer) { buffer.fill(options.letter ?? '${letter}'); return buffer.length; } }; } };`;

/** As an editor does it: the new file takes the old one's place. */
async function save(text: string): Promise<void> {
  await writeFile(`${MODULE}.new`, text, { mode: 0o644 });
  await rename(`${MODULE}.new`, MODULE);
}

async function letterOf(device: DeviceStatus): Promise<string> {
  assert.ok(device.path);
  const file = await DirectFile.openReadOnly(device.path);
  try {
    return (await file.read(0, BLOCK)).toString('latin1', 0, 1);
  } finally {
    await file[Symbol.asyncDispose]();
  }
}

const capacityOf = async (device: DeviceStatus): Promise<number> =>
  Number(await readFile(`/sys/block/ublkb${String(device.id)}/size`, 'utf8')) * 512;

test('hand-over', { timeout: 1_100_000 }, async (t) => {
  await mkdir(DIRECTORY, { mode: 0o755 });
  await save(letters('a'));
  await trust(MODULE);
  const disk = { name: 'disk', queues: 2, depth: 32, backend: { type: 'ram', size: '16MiB' } };
  const js = { name: 'js', queues: 2, backend: { type: MODULE } };
  const gone = { name: 'gone', backend: { type: 'null', size: '1MiB' } };
  const served = await RunningSupervisor.start([disk, js, gone], { args: ['--watch'] });
  const { path } = await served.device('disk');
  assert.ok(path);
  const underLoad = (act: () => Promise<void>): Promise<void> =>
    underVerifiedWrites([{ name: 'disk', path, size: '8M', depth: 32 }], act);
  const post = async (what: string, body?: object): Promise<{ readonly status: number; readonly said: string }> => {
    const answer = await served.api('POST', `/v1/${what}`, body);
    return { status: answer.status, said: JSON.stringify(answer.body) };
  };

  await t.test('E3 hand-over under fio verify', async (t) => {
    const pauses: (number | null)[] = [];
    await underLoad(async () => {
      for (let generation = 2; generation <= 6; generation += 1) {
        const { status, said } = await post('devices/disk/restart');
        assert.equal(status, 200, said);
        const now = await served.device('disk');
        assert.deepEqual([now.state, now.generation, now.recoveries], ['live', generation, 0]);
        assert.equal(now.lastExit, null);
        pauses.push(now.lastPauseMs);
      }
    });
    t.diagnostic(`pauses ${pauses.join(', ')} ms`);
  });

  await t.test('E3 a saved module is handed over to, and one that does not load is not', async () => {
    assert.equal(await letterOf(await served.device('js')), 'a');
    await save(letters('b'));
    const next = await served.untilGeneration('js', 2, PAUSE_MS);
    assert.equal(await letterOf(next), 'b');
    await save('this is no JavaScript');
    await served.logs(/loading backend .* failed: .*goes on with the code before/, PAUSE_MS);
    assert.equal((await served.device('js')).generation, 2);
    assert.equal(await letterOf(next), 'b');
    const { status, said } = await post('devices/js/restart');
    assert.equal(status, 500, said);
    assert.match(said, /loading backend .* failed/);
    await save(letters('c', 'options.size = 8192;'));
    await served.logs(/announces 8192 bytes, not 1048576/, PAUSE_MS);
    assert.deepEqual([(await served.device('js')).generation, await letterOf(next)], [2, 'b']);
    await save(letters('d', "if (options.letter !== undefined) throw new Error('not this letter');"));
    assert.equal(await letterOf(await served.untilGeneration('js', 3, PAUSE_MS)), 'd');
  });

  await t.test('C2 reload refuses, and changes nothing', async () => {
    const before = (await served.status()).devices.map(({ generation }) => generation);
    const refusals: readonly [readonly object[], RegExp][] = [
      [[{ ...disk, queues: 1 }, js, gone], /queues cannot change while device disk is served/],
      [[{ ...disk, backend: { type: 'ram', size: '32MiB' } }, js], /backend.size cannot change.*resize/],
      [
        [
          { ...disk, id: 9 },
          { ...js, backend: { type: MODULE, letter: 'z' } },
        ],
        /id cannot change/,
      ],
      [[disk, { ...js, backend: { type: MODULE, letter: 'z' } }], /not this letter.*nothing was changed/],
      [[disk, js, gone, { name: 'new', backend: { type: 'file', path: '/none/at/all' } }], /none.at.all/],
      [[disk, js, { name: 'x y' }], /expected 1 to 63 of/],
    ];
    for (const [devices, reason] of refusals) {
      await served.configure(devices);
      const { status, said } = await post('reload');
      assert.ok(status === 409 || status === 400, said);
      assert.match(said, reason);
    }
    const { devices } = await served.status();
    assert.deepEqual(
      devices.map(({ name }) => name),
      ['disk', 'js', 'gone'],
    );
    assert.deepEqual(
      devices.map(({ generation }) => generation),
      before,
    );
    const { id } = await served.device('gone');
    const holder = await DirectFile.open(`/dev/ublkb${String(id)}`);
    await served.configure([disk, js]);
    const inUse = await post('reload');
    assert.match(inUse.said, /in use by/);
    assert.equal((await holder.read(0, BLOCK)).length, BLOCK);
    await holder[Symbol.asyncDispose]();
  });

  await t.test('C2 reload adds, removes and changes; SIGHUP too', async () => {
    await save(letters('e'));
    await served.untilGeneration('js', 4, PAUSE_MS);
    const added = { name: 'by-hand', backend: { type: 'null', size: '1MiB' } };
    await served.add(added);
    const changed = { ...js, backend: { type: MODULE, letter: 'z' } };
    const fresh = { name: 'fresh', backend: { type: 'ram', size: '1MiB' } };
    await served.configure([{ ...disk, requestTimeout: '50s' }, changed, fresh]);
    const dryRun = await served.command('reload', '--dry-run');
    const plan = 'change disk: requestTimeout\nchange js: backend.letter\nadd fresh\nremove gone';
    assert.deepEqual(dryRun, { code: 0, stdout: plan, stderr: '' });
    assert.equal((await served.device('js')).generation, 4);
    await underLoad(async () => {
      process.kill(served.pid, 'SIGHUP');
      await served.logs(/"reloaded"/, PAUSE_MS);
    });
    const names = (await served.status()).devices.map(({ name }) => name);
    assert.deepEqual(names.sort(), ['by-hand', 'disk', 'fresh', 'js']);
    assert.equal(await letterOf(await served.device('js')), 'z');
    const again = (await served.api('POST', '/v1/reload', { dryRun: true })).body as { devices: PlanEntry[] };
    assert.deepEqual(
      again.devices.map(({ action }) => action),
      ['keep', 'keep', 'keep'],
    );
    await served.remove('by-hand');
  });

  const { devices } = await served.status();
  await t.test('E2 resize', async (t) => {
    const disk = await served.device('disk');
    const resize = (name: string, size: unknown, force = false) => post(`devices/${name}/resize`, { size, force });
    if (!isLinux(6, 16)) {
      const { status, said } = await resize('disk', '32MiB');
      assert.deepEqual([status, await capacityOf(disk)], [409, 16 * MIB], said);
      assert.match(said, /this kernel cannot/);
      return;
    }
    const endsInZeros = async (): Promise<boolean> => {
      const file = await DirectFile.open(path);
      try {
        return (await file.read(32 * MIB - BLOCK, BLOCK)).every((byte) => byte === 0);
      } finally {
        await file[Symbol.asyncDispose]();
      }
    };
    for (const [name, size, reason] of [
      ['disk', 0, /expected a multiple/],
      ['disk', '1.5K', /expected a multiple/],
      ['disk', 16 * MIB + 512, /not a multiple of its block size/],
      ['disk', -1, /expected a size/],
      ['js', '2MiB', /announces 1048576 bytes/],
      ['nobody', '2MiB', /no such device/],
    ] as const) {
      const { status, said } = await resize(name, size);
      assert.ok(status >= 400, said);
      assert.match(said, reason);
    }
    await t.test('E2 resize grows under load, and what grew reads zeros', async () => {
      await underLoad(async () => {
        const { status, said } = await resize('disk', '32MiB');
        assert.equal(status, 200, said);
      });
      const now = await served.device('disk');
      assert.deepEqual([now.size, await capacityOf(now), now.recoveries], [32 * MIB, 32 * MIB, 0]);
      assert.ok(await endsInZeros());
      const file = await DirectFile.open(path);
      await file.write(32 * MIB - BLOCK, Buffer.alloc(BLOCK, 7));
      await file[Symbol.asyncDispose]();
      assert.ok(!(await endsInZeros()));
    });
    await t.test('E2 resize shrinks only what nobody uses, or by force', async () => {
      const holder = await DirectFile.open(path);
      const refused = await resize('disk', '20MiB');
      assert.equal(refused.status, 409);
      assert.match(refused.said, /in use by/);
      assert.equal(await capacityOf(disk), 32 * MIB);
      assert.equal((await resize('disk', '24MiB', true)).status, 200);
      assert.equal(await capacityOf(disk), 24 * MIB);
      await holder[Symbol.asyncDispose]();
      assert.equal((await resize('disk', '20MiB')).status, 200);
      assert.equal(await capacityOf(disk), 20 * MIB);
    });
    await t.test('E2 the size survives a crash, and a reload; what was cut off does not come back', async () => {
      const { queues, recoveries } = await served.device('disk');
      process.kill(queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
      const recovered = await served.untilLive('disk', recoveries + 1);
      assert.deepEqual([recovered.size, await capacityOf(disk)], [20 * MIB, 20 * MIB]);
      const reloaded = await post('reload');
      assert.equal(reloaded.status, 200, reloaded.said);
      assert.equal((await resize('disk', '32MiB')).status, 200);
      assert.ok(await endsInZeros());
    });
    await t.test('E2 resize of a file', async () => {
      const file = join(DIRECTORY, 'file.img');
      await served.add({ name: 'file', backend: { type: 'file', path: file, size: '1MiB' } });
      for (const size of [2 * MIB, MIB / 2]) {
        const { status, said } = await resize('file', size);
        assert.equal(status, 200, said);
        assert.deepEqual([(await stat(file)).size, await capacityOf(await served.device('file'))], [size, size]);
      }
      await served.remove('file');
    });
  });
  assert.ok(devices.every(({ state }) => state === 'live'));
  for (const { name } of (await served.status()).devices) await served.remove(name);
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);
});
