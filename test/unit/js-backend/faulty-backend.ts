import { setImmediate } from 'node:timers';
import { setTimeout } from 'node:timers/promises';
import { z } from 'zod';
import { defineBackend, type BackendContext, type BackendInstance } from '../../../src/js-backend/define.js';

/** A RAM disk that keeps every rule of a backend but the one that `fault` names. */

export const faults = {
  none: () => ({}),
  'open throws': () => {
    throw Object.assign(new Error('out of stock'), { code: 'EBUSY' });
  },
  'size differs between instances': ({ disk }, { queue }) => ({ size: disk.length - queue * 4096 }),
  'size changes when opened again': ({ disk, context }) => {
    const openings = context.sharedMemory('openings', 1);
    openings[0] = (openings[0] ?? 0) + 1;
    return { size: disk.length - (openings[0] > 2 ? 4096 : 0) };
  },
  'read answers undefined': ({ whole }) => ({ read: (buffer, offset) => void whole.read(buffer, offset) as never }),
  'read answers too few': ({ whole }) => ({
    read: (buffer, offset) => whole.read(buffer.subarray(0, 512), offset),
  }),
  'read answers before it has the data': ({ whole }) => ({
    read: (buffer, offset) => {
      setImmediate(() => whole.read(buffer, offset));
      return buffer.length;
    },
  }),
  'read fills its buffer again later': ({ whole }) => ({
    read: (buffer, offset) => {
      setImmediate(() => whole.read(buffer, offset));
      return whole.read(buffer, offset);
    },
  }),
  'write answers before it took the data': ({ whole }) => ({
    write: (buffer, offset) => {
      setImmediate(() => whole.write(buffer, offset));
      return buffer.length;
    },
  }),
  'write ignores the offset': ({ whole }) => ({ write: (buffer) => whole.write(buffer, 0) }),
  'write beside the last block': ({ whole, disk }) => ({
    write: (buffer, offset) =>
      whole.write(buffer, offset + buffer.length === disk.length && offset > 0 ? offset - 512 : offset),
  }),
  'write keeps the buffer': ({ whole, disk }) => {
    const kept = new Map<number, Buffer>();
    return {
      read: (buffer, offset) => {
        whole.read(buffer, offset);
        for (const [at, data] of kept) {
          const from = Math.max(at, offset);
          const to = Math.min(at + data.length, offset + buffer.length);
          if (from < to) data.copy(buffer, from - offset, from - at, to - at);
        }
        return buffer.length;
      },
      write: (buffer, offset) => {
        kept.set(offset, buffer);
        return whole.write(buffer, offset % disk.length);
      },
    };
  },
  'one of two overlapping writes is lost': ({ whole }) => {
    let underWay = 0;
    return {
      write: async (buffer, offset) => {
        underWay++;
        await setTimeout(1);
        if (--underWay === 0) whole.write(buffer, offset);
        return buffer.length;
      },
    };
  },
  'a long write loses its end': ({ whole }) => ({
    write: (buffer, offset) => {
      whole.write(buffer.subarray(0, 1000 * 512), offset);
      return buffer.length;
    },
  }),
  'a write of six blocks is lost': ({ whole }) => ({
    write: (buffer, offset) => (buffer.length === 3072 ? buffer.length : whole.write(buffer, offset)),
  }),
  'an instance has data of its own': ({ disk }) => {
    const own = Buffer.alloc(disk.length);
    return {
      read: (buffer, offset) => own.copy(buffer, 0, offset),
      write: (buffer, offset) => buffer.copy(own, offset),
    };
  },
  'writes are lost on close': ({ disk }) => ({ close: () => disk.fill(0) }),
  'data is lost unless it was closed': ({ disk, context }) => {
    if (context.queue !== 0) return {};
    const closed = context.sharedMemory('closed', 1);
    if (closed[0] === 0) disk.fill(0);
    closed[0] = 0;
    return { close: () => closed.fill(1) };
  },
  'flush throws': () => ({
    flush: () => {
      throw Object.assign(new Error('disk is full'), { code: 'ENOSPC' });
    },
  }),
  'discard throws': () => ({
    discard: () => {
      throw new Error('not implemented');
    },
  }),
  'discard takes one block more': ({ disk }) => ({
    discard: (offset, length) => disk.fill(0, offset, offset + length + 512),
  }),
  'writeZeroes leaves what was there': () => ({ writeZeroes: () => undefined }),
  'writeZeroes discards with mayUnmap': ({ disk }) => ({
    writeZeroes: (offset, length, { mayUnmap }) => disk.fill(mayUnmap ? 0xff : 0, offset, offset + length),
  }),
  'reads of a read-only disk differ': ({ whole }) => {
    let reads = 0;
    return {
      readOnly: true,
      read: (buffer, offset) => {
        whole.read(buffer, offset);
        buffer[0] = ++reads;
        return buffer.length;
      },
    };
  },
  'read never settles': ({ whole }) => ({
    read: (buffer, offset) => (offset > 0 ? new Promise(() => undefined) : whole.read(buffer, offset)),
  }),
  'close never settles': () => ({ close: () => new Promise(() => undefined) }),
  'requests are dropped when it drains': ({ whole }, { signal }) => ({
    read: async (buffer, offset) => {
      await setTimeout(1);
      signal.throwIfAborted();
      return whole.read(buffer, offset);
    },
  }),
  'it exits': () => ({
    write: () => process.exit(7),
  }),
  'it throws outside of a call': ({ whole }) => ({
    write: (buffer, offset) => {
      setImmediate(() => {
        throw new Error('nobody catches this');
      });
      return new Promise<number>(() => whole.write(buffer, offset));
    },
  }),
} satisfies Record<string, (given: Given, context: BackendContext) => Partial<BackendInstance>>;

interface Given {
  readonly disk: Buffer;
  /** What reads and writes should do. */
  readonly whole: { read(buffer: Buffer, offset: number): number; write(buffer: Buffer, offset: number): number };
  readonly context: BackendContext;
}

export type Fault = keyof typeof faults;

export default defineBackend({
  name: 'faulty',
  options: z.strictObject({
    fault: z.enum(Object.keys(faults) as [Fault, ...Fault[]]).default('none'),
    size: z.int().default(2 ** 22),
  }),
  open({ fault, size }, context): BackendInstance {
    const disk = context.sharedMemory('disk', size);
    const whole = {
      read: (buffer: Buffer, offset: number) => disk.copy(buffer, 0, offset),
      write: (buffer: Buffer, offset: number) => buffer.copy(disk, offset),
    };
    const good: BackendInstance = {
      size,
      ...whole,
      flush: () => undefined,
      discard: (offset, length) => disk.fill(0, offset, offset + length),
      writeZeroes: (offset, length) => disk.fill(0, offset, offset + length),
    };
    return { ...good, ...faults[fault]({ disk, whole, context }, context) };
  },
});
