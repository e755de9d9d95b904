import { ftruncateSync, readSync, writeSync } from 'node:fs';
import { FIRST_PAGE } from '../channel/memory-layout.js';
import { assertSharedMemory } from '../js-backend/load.js';
import { lockForProcess } from '../native/addon/files.js';
import { mapShared } from '../native/addon/system.js';

const PAGE = FIRST_PAGE.length;
/** Of a name, in front of the size, which has 64 bits. */
const NAME_BYTES = 64;

/** `BackendContext.sharedMemory`: made in `file` by the first process that asks for it. */
export function sharedMemory(file: number, name: string, size: number): Buffer {
  assertSharedMemory(name, size);
  lockForProcess(file, true);
  try {
    return mapShared(file, placeOf(file, name, size), size);
  } finally {
    lockForProcess(file, false);
  }
}

function placeOf(file: number, name: string, size: number): number {
  for (let at = PAGE; ;) {
    const { name: found, size: present } = readHead(file, at);
    const place = at + PAGE;
    if (found === '') {
      // First, so that what has a name has its room.
      ftruncateSync(file, place + wholePages(size));
      writeHead(file, at, name, size);
      return place;
    }
    if (found === name && present === size) return place;
    if (found === name) {
      throw new RangeError(`sharedMemory ${name} has ${present} bytes, not ${size}`);
    }
    at = place + wholePages(present);
  }
}

const wholePages = (size: number): number => Math.ceil(size / PAGE) * PAGE;

function readHead(file: number, at: number): { readonly name: string; readonly size: number } {
  const head = Buffer.alloc(NAME_BYTES + 8);
  readSync(file, head, 0, head.length, at);
  const name = head.toString('latin1', 0, head.indexOf(0));
  return { name, size: Number(head.readBigUInt64LE(NAME_BYTES)) };
}

function writeHead(file: number, at: number, name: string, size: number): void {
  const head = Buffer.alloc(NAME_BYTES + 8);
  head.write(name, 'latin1');
  head.writeBigUInt64LE(BigInt(size), NAME_BYTES);
  writeSync(file, head, 0, head.length, at);
}
