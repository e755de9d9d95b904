import assert from 'node:assert/strict';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import { setTimeout } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import { random } from './random.js';

/**
 * A program that oracles.ts runs: takes blocks of a device for registers, which it writes and reads past the page cache
 * until it is told to stop. A read must give the last write that was acknowledged, or one that was under way meanwhile,
 * or some of both: a disk need not copy a block at one go. A process of its own, as what waits for a device that is made
 * to suffer keeps libuv's threads.
 */

export interface RegisterReport {
  readonly operations: number;
  /** How long the slowest took, as far as the machine gave us time to see; milliseconds. */
  readonly longestMs: number;
}

const BLOCK = 4096;
const STAMP = 16;
/** libuv's threads. */
const LANES = 4;
/** One is counted when it fires, however late: a machine that stands still makes no request old. */
const TICK_MS = 100;

class Register {
  /** Sequence number of the last write that was acknowledged; 0: whatever was there before. */
  acknowledged = 0;
  /** Of the write that is under way; 0: none. */
  written = 0;
  /** For each read under way, what it may give. */
  readonly reads = new Set<Set<number>>();
}

const [path = '', first = '', count = '', budgetMs = '', restMs = ''] = process.argv.slice(2);
const start = Number(first);
const rest = Number(restMs);
const registers = Array.from({ length: Number(count) }, () => new Register());
const before: Buffer[] = [];
const underWay = new Set<{ readonly what: string; ticks: number }>();
let sequence = 0;
let operations = 0;
let longestTicks = 0;
let stopping = false;

/** What a block has over and over, so that a torn or misplaced one shows wherever it is torn: (lba, sequence, crc). */
function stampOf(index: number, number: number): Buffer {
  const stamp = Buffer.alloc(STAMP);
  stamp.writeUInt32LE(start + index, 0);
  stamp.writeDoubleLE(number, 4);
  stamp.writeUInt32LE(crc32(stamp.subarray(0, 12)), 12);
  return stamp;
}

/** The block as that write left it; 0: as it was before all of them. */
function blockOf(index: number, number: number): Buffer {
  if (number === 0) return before[index] ?? assert.fail(`register ${index} has no past`);
  return Buffer.alloc(BLOCK, stampOf(index, number));
}

/** Whether each byte is one of a write that is allowed. */
function isMadeOf(index: number, data: Buffer, allowed: ReadonlySet<number>): boolean {
  if (data.length !== BLOCK) return false;
  const blocks = [...allowed].map((number) => blockOf(index, number));
  if (blocks.some((block) => block.equals(data))) return true;
  return data.every((byte, at) => blocks.some((block) => block[at] === byte));
}

/** `0 write 17, 2048 foreign 0f00…, 2064 write 12`: where in the block what begins. */
function describe(index: number, data: Buffer): string {
  const parts: string[] = [];
  let last = '';
  for (let at = 0; at < data.length; at += STAMP) {
    const stamp = data.subarray(at, at + STAMP);
    const number = stamp.length === STAMP ? stamp.readDoubleLE(4) : NaN;
    const known = stampOf(index, number).equals(stamp);
    const what = known ? `write ${number}` : `foreign ${stamp.toString('hex')}`;
    if (what !== last) parts.push(`${at} ${what}`);
    last = what;
  }
  return parts.join(', ');
}

async function timed<Result>(what: string, operation: () => Promise<Result>): Promise<Result> {
  const entry = { what, ticks: 0 };
  underWay.add(entry);
  try {
    return await operation();
  } finally {
    underWay.delete(entry);
    operations++;
    longestTicks = Math.max(longestTicks, entry.ticks);
  }
}

const registerAt = (index: number): Register => registers[index] ?? assert.fail(`no register ${index}`);

async function write(disk: DirectFile, index: number): Promise<void> {
  const register = registerAt(index);
  // One write at a time: of two the order would be anybody's guess.
  if (register.written !== 0) return read(disk, index);
  const number = ++sequence;
  register.written = number;
  for (const allowed of register.reads) allowed.add(number);
  const offset = (start + index) * BLOCK;
  const written = await timed(`a write of block ${index}`, () => disk.write(offset, blockOf(index, number)));
  assert.equal(written, BLOCK);
  register.written = 0;
  register.acknowledged = number;
}

async function read(disk: DirectFile, index: number): Promise<void> {
  const register = registerAt(index);
  const allowed = new Set([register.acknowledged]);
  if (register.written !== 0) allowed.add(register.written);
  register.reads.add(allowed);
  const offset = (start + index) * BLOCK;
  const data = await timed(`a read of block ${index}`, () => disk.read(offset, BLOCK));
  register.reads.delete(allowed);
  if (isMadeOf(index, data, allowed)) return;
  const all = [...allowed].join(' or ');
  assert.fail(`block ${start + index} of ${path} reads as ${describe(index, data)}, not as write ${all}`);
}

async function lane(disk: DirectFile): Promise<void> {
  while (!stopping) {
    const index = random(registers.length);
    const dice = random(16);
    if (dice === 0) await timed('a flush', () => disk.flush());
    else if (dice < 9) await write(disk, index);
    else await read(disk, index);
    // A pace, and no wait for anything. Without one a lane does not even go through the timers.
    if (rest > 0) await setTimeout(rest);
  }
}

const report = (): RegisterReport => ({ operations, longestMs: longestTicks * TICK_MS });

await using disk = await DirectFile.open(path);
for (const index of registers.keys()) before.push(await disk.read((start + index) * BLOCK, BLOCK));
process.on('message', () => {
  stopping = true;
});
// Whoever started us is gone.
const onDisconnect = (): never => process.exit(1);
process.on('disconnect', onDisconnect);
const ticker = setInterval(() => {
  for (const entry of underWay) {
    entry.ticks++;
    if (entry.ticks * TICK_MS > Number(budgetMs)) throw new Error(`${entry.what} of ${path} takes too long`);
  }
  process.send?.(report());
}, TICK_MS);
await Promise.all(Array.from({ length: LANES }, () => lane(disk)));
for (const index of registers.keys()) await read(disk, index);
clearInterval(ticker);
process.send?.(report());
process.off('disconnect', onDisconnect);
process.disconnect();
