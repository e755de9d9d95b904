import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import t from 'tap';
import { checkBackend, testBackend, type CheckResult } from '../../../src/js-backend/conformance/index.js';
import type { Fault } from './faulty-backend.js';

const faulty = new URL('faulty-backend.js', import.meta.url);

const reads = 'reads at every edge, and the same again on the other queue';
const writes = 'reads what was written, at every edge';
const atOnce = 'many requests at once';
const closing = 'answers what is under way when it drains; closes; opened again, it has its data';
const killing = 'opened again after its process was killed, it has all that was answered';

/** The first check that each fault has to fail, and what it has to say. */
const expected: Readonly<Record<Exclude<Fault, 'none'>, readonly [check: string, detail: RegExp]>> = {
  'open throws': ['opens', /^out of stock\nat .*faulty/],
  'size differs between instances': ['opens', /^instances differ: .*4194304.*4190208/],
  'size changes when opened again': [closing, /^instances differ: /],
  'read answers undefined': [reads, /^read of 512 bytes at 0 on queue 0 answered undefined; expected 512$/],
  'read answers too few': [reads, /^read of 1024 bytes at 0 on queue 0 answered 512; expected 1024$/],
  'read answers before it has the data': [reads, /the buffer was not filled when the call settled/],
  'read fills its buffer again later': [reads, /the buffer of a read of .* changed after the call had settled/],
  'write answers before it took the data': [
    writes,
    /on queue 1: byte 0 is .*: (zeros|the buffer of a write was read after)/,
  ],
  'write ignores the offset': [writes, /byte 2096128 is 0x00.*: zeros/],
  'write beside the last block': [writes, /data that was written to byte /],
  'write keeps the buffer': [writes, /: the buffer of a write was read after the call had settled/],
  'one of two overlapping writes is lost': [atOnce, /: zeros|: data of another write/],
  'a long write loses its end': [writes, /read of 1048576 bytes .*byte /],
  'a write of six blocks is lost': [
    'random operations',
    /\nafter 1 operation, with --seed 1:\n {2}queue \d: write of 3072 bytes at \d+ \(blocks \d+ to \d+\)$/,
  ],
  'an instance has data of its own': [writes, /on queue 1: byte 0 is 0x00.*zeros/],
  'writes are lost on close': [closing, /: zeros/],
  'data is lost unless it was closed': [killing, /: zeros/],
  'flush throws': [
    'flush, alone, twice and with writes under way',
    /flush on queue 0 failed: disk is full \(ENOSPC\)\nat .*flush.*faulty/,
  ],
  'discard throws': [
    'discard changes nothing beside its range',
    /discard of .* failed: not implemented\nat .*discard.*faulty/,
  ],
  'discard takes one block more': ['discard changes nothing beside its range', /is 0x00.*zeros/],
  'writeZeroes leaves what was there': [
    'writeZeroes leaves zeros, and changes nothing beside its range',
    /expected 0x00: data of another write to this place/,
  ],
  'writeZeroes discards with mayUnmap': [
    'writeZeroes leaves zeros, and changes nothing beside its range',
    /is 0xff, expected 0x00: data that was not written/,
  ],
  'reads of a read-only disk differ': [reads, /expected 0x/],
  'read never settles': [reads, /^read of .* on queue 0 did not settle within 3000 ms$/],
  'close never settles': [closing, /^close on queue 0 did not settle within 3000 ms$/],
  'requests are dropped when it drains': [closing, /failed: This operation was aborted/],
  'it exits': [writes, /^write of .* on queue 0 was not answered: its process exited with code 7$/],
  'it throws outside of a call': [writes, /was not answered: its process died of: nobody catches this\nat .*faulty/],
};

// Hundreds of worker threads, on machines that may have other things to do.
t.setTimeout(180_000);

t.test('each fault is found and explained, and none where there is none', async (t) => {
  const program = fileURLToPath(new URL('conformance-program.js', import.meta.url));
  const { stdout } = await execa(process.execPath, [program], { extendEnv: false });
  const found = JSON.parse(stdout) as Record<Fault, CheckResult | null>;
  t.equal(found.none, null);
  t.strictSame(Object.keys(found), ['none', ...Object.keys(expected)]);
  for (const [fault, [name, detail]] of Object.entries(expected)) {
    t.match(found[fault as Fault], { name, detail }, fault);
  }
});

t.test('every check is made of a disk of one block, and of one of odd length', async (t) => {
  for (const size of [4096, 2 ** 20 + 3 * 512]) {
    const results: CheckResult[] = [];
    for await (const result of checkBackend(faulty, { size }, { runs: 20 })) results.push(result);
    t.strictSame(
      results.filter(({ outcome }) => outcome !== 'ok'),
      [],
    );
    t.equal(results.length, 11);
  }
});

t.test('a backend that serves one queue has one instance, which knows where paths are relative to', async (t) => {
  const single = `import assert from 'node:assert/strict';
    export default {
      name: 'single',
      maxQueues: 1,
      open(options, context) {
        assert.equal(context.queues, 1);
        assert.equal(context.resolve('store/disk'), process.cwd() + '/store/disk');
        const disk = context.sharedMemory('disk', 65536);
        return {
          size: 65536,
          read: (buffer, offset) => disk.copy(buffer, 0, offset, offset + buffer.length),
          write: (buffer, offset) => buffer.copy(disk, offset),
        };
      },
    };`;
  const directory = t.testdir({
    'single.mjs': single,
    'none.mjs': single.replace('maxQueues: 1', 'maxQueues: 0'),
  });
  await testBackend(join(directory, 'single.mjs'), {}, { runs: 1 });
  await t.rejects(testBackend(join(directory, 'none.mjs')), { message: /its maxQueues is 0; expected 1 or more/ });
});

t.test('testBackend() rejects with all that is wrong', async (t) => {
  await testBackend(faulty.href, {}, { runs: 1 });
  await t.rejects(testBackend('/nowhere/disk.js'), {
    code: 'BACKEND',
    message: /^opens: loading backend .nowhere.disk.js/,
  });
  const broken = join(t.testdir({ 'broken.mjs': 'export default {\n  name: {{\n};\n' }), 'broken.mjs');
  await t.rejects(testBackend(broken), { message: /broken\.mjs failed: Unexpected token '{'; line 2: name: {{$/ });
});
