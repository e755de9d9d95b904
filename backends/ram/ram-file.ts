import { constants } from 'node:fs';
import { lstat, mkdir, open, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { SupervisorError, messageOf } from '../../src/errors.js';
import { flock } from '../../src/native/binding.js';

/** A directory of our own below the world-writable /dev/shm, so that nobody else can plant links or files in it. */
const RAM_DIRECTORY = '/dev/shm/ublk-supervisor';

export interface RamFile {
  readonly fd: number;
  /** There was no data of this device before. */
  readonly created: boolean;
  /** Closes the file and keeps it. */
  close(): Promise<void>;
  remove(): Promise<void>;
}

/** The data, then a bitmap with a bit for each page of it; ram.hpp says why. */
function fileBytes(size: number): number {
  const pages = Math.ceil(size / 4096);
  return pages * 4096 + Math.ceil(pages / 64) * 8;
}

/** Opens or creates the tmpfs file of a RAM disk, sparse, locked against a second user. */
export async function openRamFile(device: string, size: number): Promise<RamFile> {
  await ensureOwnDirectory();
  const path = join(RAM_DIRECTORY, `${device}.ram`);
  const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600).catch(
    (error: unknown) => {
      throw new SupervisorError(`opening RAM disk file ${path} failed: ${messageOf(error)}`, {
        code: 'BACKEND',
        device,
        cause: error,
      });
    },
  );
  let created = false;
  try {
    if (!flock(file.fd)) {
      throw new SupervisorError(`RAM disk file ${path} is in use by another process; use another device name`, {
        code: 'IN_USE',
        device,
      });
    }
    const bytes = fileBytes(size);
    const { size: present } = await file.stat();
    created = present === 0;
    if (present !== 0 && present !== bytes) {
      throw new SupervisorError(
        `RAM disk file ${path} has ${String(present)} bytes, but a disk of ${String(size)} bytes needs ${String(bytes)}; ` +
          'it is of a device of that name with another size: configure that size or remove the file',
        { code: 'BACKEND', device },
      );
    }
    await file.truncate(bytes);
  } catch (error) {
    await file.close();
    if (created) await unlink(path);
    throw error;
  }
  return {
    fd: file.fd,
    created,
    close: () => file.close(),
    remove: () => unlink(path),
  };
}

async function ensureOwnDirectory(): Promise<void> {
  await mkdir(RAM_DIRECTORY, { mode: 0o700 }).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
  });
  const found = await lstat(RAM_DIRECTORY);
  if (!found.isDirectory() || found.uid !== process.geteuid?.() || (found.mode & 0o022) !== 0) {
    throw new SupervisorError(`${RAM_DIRECTORY} is not a directory that only we can write to; remove it`, {
      code: 'BACKEND',
    });
  }
}
