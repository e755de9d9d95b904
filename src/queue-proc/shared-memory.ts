import { closeSync, constants, fstatSync, ftruncateSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { assertSharedMemory } from '../backend/load.js';
import { mapShared } from '../native/binding.js';

/** `BackendContext.sharedMemory`: a tmpfs file for each name, in a directory that the supervisor made for the device. */
export function sharedMemory(directory: string, name: string, size: number): Buffer {
  assertSharedMemory(name, size);
  const fd = openSync(join(directory, name), constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
  try {
    // Whoever is first makes it; two that are first at once make the same.
    const present = fstatSync(fd).size;
    if (present === 0) ftruncateSync(fd, size);
    else if (present !== size) {
      throw new RangeError(`sharedMemory ${name} has ${String(present)} bytes, not ${String(size)}`);
    }
    return mapShared(fd, size);
  } finally {
    closeSync(fd);
  }
}
