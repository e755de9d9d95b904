import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { memoryFileOf } from '../../backends/module/memory-file.js';
import { DATA_OFFSET } from '../../backends/ram/ram-file.js';
import { sharedMemory } from '../../src/queue-proc/shared-memory.js';

export const ramFile = (device: string): string => `/dev/shm/ublk-supervisor/${device}.ram`;

/** What a RAM disk holds, read past the device; of a bitmap in front of it nothing. */
export async function ramData(device: string): Promise<Buffer> {
  await using file = await open(ramFile(device));
  const data = Buffer.alloc((await file.stat()).size - DATA_OFFSET);
  const { bytesRead } = await file.read(data, 0, data.length, DATA_OFFSET);
  assert.equal(bytesRead, data.length);
  return data;
}

/** What a backend in JavaScript has as `context.sharedMemory(name, size)`. */
export function memoryOf(device: string, name: string, size: number): Buffer {
  const file = openSync(memoryFileOf(device), 'r+');
  try {
    return sharedMemory(file, name, size);
  } finally {
    closeSync(file);
  }
}
