// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { copyFile, mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import type { CrashStatus, DeviceStatus } from '../../src/api/status.js';
import { RunningSupervisor, assertNothingLeft, root, waitFor } from './harness.js';

/** Requests that crash whoever serves them, and what is told of crashes. */

const DIRECTORY = '/run/backends';
const STATE = '/run/state';
const BLOCK = 4096;
const SECTORS = BLOCK / 512;
/** One fewer than libuv has threads, and the poison read needs one. */
const READERS = 3;
/** Ample for queue processes that boot node on a busy emulated machine. */
const RECOVERY_TIMEOUT_MS = 120_000;
const codeOf = (error: unknown): string | undefined => (error as NodeJS.ErrnoException).code;

/** Reads other blocks than those that are poison, many at once, and counts. */
class Readers {
  reads = 0;
  #ending = false;
  readonly #all: Promise<unknown>;

  constructor(disk: DirectFile) {
    const read = async (block: number): Promise<void> => {
      while (!this.#ending) {
        assert.deepEqual(await disk.read(block * BLOCK, BLOCK), Buffer.alloc(BLOCK, block));
        this.reads += 1;
      }
    };
    this.#all = Promise.all(Array.from({ length: READERS }, (_, index) => read(20 + index)));
    this.#all.catch(() => undefined);
  }

  /** Rejects when one of them met an error, or anything but what was written. */
  async end(): Promise<void> {
    this.#ending = true;
    await this.#all;
  }
}

async function reportsOf(generation: number): Promise<CrashStatus> {
  const directory = join(STATE, 'crashes');
  const name = await waitFor('a crash report', async () =>
    (await readdir(directory)).find((file) => file.endsWith(`-${generation}.json`)),
  );
  return JSON.parse(await readFile(join(directory, name), 'utf8')) as CrashStatus;
}

test('requests that crash their backend', { timeout: 1_100_000 }, async (t) => {
  await mkdir(DIRECTORY, { mode: 0o755 });
  const module = join(DIRECTORY, 'poison.mjs');
  await copyFile(join(root, 'test/vm/poison-backend.js'), module);
  const served = await RunningSupervisor.start(
    [{ name: 'victim', queues: 1, requestTimeout: '3s', backend: { type: module } }],
    {
      stateDir: STATE,
    },
  );
  const device = (): Promise<DeviceStatus> => served.device('victim');
  const disk = await DirectFile.open((await device()).path ?? assert.fail(served.log));
  for (let block = 0; block < 64; block += 1) await disk.write(block * BLOCK, Buffer.alloc(BLOCK, block));
  const readers = new Readers(disk);

  await t.test('B4: after 3 crashes the poison read fails with EIO, and no other does', async () => {
    const before = await device();
    await assert.rejects(disk.read(8 * BLOCK, BLOCK), (error) => codeOf(error) === 'EIO');
    const { quarantine, reason, generation, state } = await served.untilLive('victim', 0, RECOVERY_TIMEOUT_MS);
    assert.deepEqual(quarantine, [{ operation: 'read', sector: 8 * SECTORS, sectors: SECTORS, crashes: 3 }]);
    assert.deepEqual([state, generation - before.generation], ['live', 3]);
    assert.match(reason ?? '', /answered with EIO: read of 8 sectors at 64, which caused 3 crashes; .* recover victim/);
    await served.logs(/read of 8 sectors at 64, which caused 3 crashes/);
  });

  await t.test('B4, O8: a crash report says what was under way, in the log, in status and in a file', async () => {
    const { lastCrash, lastExit, generation } = await device();
    assert.ok(lastCrash);
    const { cause, exit, requests, inflight, quarantined, answered, backend } = lastCrash;
    assert.deepEqual([cause, lastCrash.generation, backend], ['error', generation - 1, module]);
    assert.deepEqual(exit, lastExit);
    assert.deepEqual([exit.code, exit.reason], [1, 'RangeError: block 8 is poison']);
    assert.match(exit.stack ?? '', /poison\.mjs/);
    // On its own, the last time.
    assert.deepEqual([inflight, requests.length], [1, 1]);
    const [held] = requests;
    assert.deepEqual([held?.operation, held?.sector, held?.sectors], ['read', 8 * SECTORS, SECTORS]);
    assert.ok((held?.ageMs ?? -1) >= 0);
    assert.equal(quarantined.length, 1);
    assert.ok((lastCrash.pauseMs ?? 0) > 0);
    const first = await reportsOf(generation - 3);
    assert.ok(
      first.answered.read > 0 && first.answered.write === 64 && first.lastAnswerMs !== null,
      JSON.stringify(first),
    );
    assert.ok(
      first.requests.some(({ sector }) => sector === 8 * SECTORS),
      JSON.stringify(first),
    );
    assert.equal(answered.write, 0, 'what an earlier generation answered counts for it alone');
    const { file } = await waitFor('the report being written', async () => {
      const { lastCrash: crash } = await device();
      return crash?.file ? { file: crash.file } : false;
    });
    await waitFor('the pause being in the report', async () => (await reportsOf(generation - 1)).pauseMs !== null);
    assert.deepEqual(await reportsOf(generation - 1), (await device()).lastCrash);
    assert.equal((await stat(file)).mode & 0o777, 0o640);
    assert.equal((await stat(join(STATE, 'crashes'))).mode & 0o777, 0o750);
    assert.match(basename(file), /^[0-9]{8}T[0-9]{9}Z-victim-[0-9]+\.json$/);
    await served.logs(
      /generation 1 of device victim had answered [0-9]+ requests, the last [0-9]+ ms before, and died with/,
    );
  });

  await t.test('B2: a read that hangs counts as a crash each time', async () => {
    await assert.rejects(disk.read(9 * BLOCK, BLOCK), (error) => codeOf(error) === 'EIO');
    const { lastCrash, quarantine } = await served.untilLive('victim', 0, RECOVERY_TIMEOUT_MS);
    assert.deepEqual(
      quarantine.map(({ sector }) => sector),
      [8 * SECTORS, 9 * SECTORS],
    );
    assert.equal(lastCrash?.cause, 'hang');
    assert.match(lastCrash.exit.reason ?? '', /a read of 8 sectors at 72 is unanswered after/);
  });

  await t.test('A1: a kill from outside is told from a crash, and the quarantine outlives it', async () => {
    const { queues, recoveries } = await device();
    process.kill(queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL');
    const { quarantine, lastCrash } = await served.untilLive('victim', recoveries + 1, RECOVERY_TIMEOUT_MS);
    assert.equal(quarantine.length, 2);
    assert.equal(lastCrash?.cause, 'killed');
  });

  await t.test('B4: what is refused is answered with nothing else under way', async () => {
    const { generation } = await device();
    await readers.end();
    await assert.rejects(disk.read(8 * BLOCK, BLOCK), (error) => codeOf(error) === 'EIO');
    assert.equal((await device()).generation, generation);
  });

  await t.test('recover --clear-quarantine lifts it from a device that is live', async () => {
    await writeFile(join(DIRECTORY, 'mended'), '');
    await assert.rejects(disk.read(8 * BLOCK, BLOCK), (error) => codeOf(error) === 'EIO');
    const { generation } = await device();
    const { code, stderr } = await served.command('recover', 'victim', '--clear-quarantine');
    assert.equal(code, 0, stderr);
    for (const block of [8, 9]) {
      assert.deepEqual(await disk.read(block * BLOCK, BLOCK), Buffer.alloc(BLOCK, block));
    }
    const { quarantine, reason, generation: after } = await device();
    assert.deepEqual([quarantine, reason, after], [[], null, generation]);
  });

  assert.ok(readers.reads > 0);
  await disk[Symbol.asyncDispose]();
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir, /I\/O error, dev ublkb/);
});

test('C3: a state directory that cannot be used keeps nobody from recovering', { timeout: 200_000 }, async () => {
  await symlink('/run', '/tmp/state');
  const backend = { type: 'ram', size: '16MiB' };
  const served = await RunningSupervisor.start([{ name: 'ram0', coreDump: true, backend }], { stateDir: '/tmp/state' });
  for (let kill = 1; kill <= 2; kill += 1) {
    process.kill((await served.device('ram0')).queues[0]?.pid ?? assert.fail('no process'), 'SIGSEGV');
    await served.untilLive('ram0', kill, RECOVERY_TIMEOUT_MS);
  }
  await served.logs(/is not a directory that only we can write to/);
  const { lastCrash, queues } = await served.device('ram0');
  assert.deepEqual([lastCrash?.cause, lastCrash?.file], ['signal', null]);
  const limits = await readFile(`/proc/${String(queues[0]?.pid)}/limits`, 'utf8');
  assert.match(limits, /^Max core file size +unlimited +unlimited/m);
  assert.equal(await served.terminate(), 0);
  assert.equal(served.log.split('is not a directory that only we can write to').length, 2, served.log);
  await assertNothingLeft(served.runtimeDir, /I\/O error, dev ublkb/);
});
