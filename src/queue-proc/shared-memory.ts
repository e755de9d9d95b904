import { closeSync, constants, fstatSync, ftruncateSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { mapShared } from '../native/binding.js';

const LARGEST = 2 ** 40;

/** `BackendContext.sharedMemory`: a tmpfs file for each name, in a directory that the supervisor made for the device. */
export function sharedMemory(directory: string, name: string, size: number): Buffer {
  if (!/^[a-z0-9][a-z0-9_.-]{0,62}$/.test(name)) {
    throw new RangeError(`sharedMemory: expected a name of 1 to 63 of a-z, 0-9, "_", "." and "-", got ${name}`);
  }
  if (!Number.isSafeInteger(size) || size < 1 || size > LARGEST) {
    throw new RangeError(
      `sharedMemory ${name}: expected a size from 1 to ${String(LARGEST)} bytes, got ${String(size)}`,
    );
  }
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
