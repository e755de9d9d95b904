import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { DATA_OFFSET } from '../../backends/ram/ram-file.js';

export const ramFile = (device: string): string => `/dev/shm/ublk-supervisor/${device}.ram`;

/** What a RAM disk holds, read past the device; of a bitmap in front of it nothing. */
export async function ramData(device: string): Promise<Buffer> {
  await using file = await open(ramFile(device));
  const data = Buffer.alloc((await file.stat()).size - DATA_OFFSET);
  const { bytesRead } = await file.read(data, 0, data.length, DATA_OFFSET);
  assert.equal(bytesRead, data.length);
  return data;
}
