import { closeSync, fstatSync, openSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FIRST_PAGE } from '../../../src/channel/memory-layout.js';
import { sharedMemory } from '../../../src/queue-proc/shared-memory.js';

const open = (t: Test): number => {
  const file = openSync(join(t.testdir({ memory: FIRST_PAGE }), 'memory'), 'r+');
  t.teardown(() => closeSync(file));
  return file;
};

t.test('what has a name is the same memory for whoever asks for it, and nobody else', async (t) => {
  const file = open(t);
  const disk = sharedMemory(file, 'disk', 5000);
  const late = sharedMemory(file, 'late0', 8);
  const large = sharedMemory(file, 'large', 2 ** 31);
  t.ok([disk, late, large.subarray(0, 4096)].every((memory) => memory.every((byte) => byte === 0)));
  disk.fill(1);
  late.fill(2);
  large[2 ** 31 - 1] = 3;
  t.ok(sharedMemory(file, 'disk', 5000).every((byte) => byte === 1));
  t.ok(sharedMemory(file, 'late0', 8).every((byte) => byte === 2));
  t.equal(sharedMemory(file, 'large', 2 ** 31)[2 ** 31 - 1], 3);
  t.ok(fstatSync(file).blocks * 512 < 2 ** 20, 'what was not written takes room');
});

t.test('it cannot have two sizes', async (t) => {
  const file = open(t);
  sharedMemory(file, 'disk', 5000);
  t.throws(() => sharedMemory(file, 'disk', 5001), /sharedMemory disk has 5000 bytes, not 5001/);
});
