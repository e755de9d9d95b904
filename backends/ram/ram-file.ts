import { closeSync, fstatSync, ftruncateSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { LeftBackend } from '../interface.js';
import { SupervisorError } from '../../src/errors.js';
import { fallocate, KEEP_SIZE, PUNCH_HOLE } from '../../src/native/addon/files.js';
import { RESTORE, SHARED_MEMORY_DIRECTORY, openInSharedMemory } from '../shared-memory.js';

export interface RamFile {
  readonly fd: number;
  /** There was no data of this device before. */
  readonly created: boolean;
  /** Closes the file and keeps it. */
  close(): void;
  /** Room for `size` bytes; what was written stays. */
  grow(size: number): void;
  /** Cuts off what is behind `size`, so that it reads as zeros should the disk grow again. */
  trim(size: number): Promise<void>;
  remove(): Promise<void>;
}

const PAGE = 4096;
/** Where the data is, behind a bitmap with a bit for each page of it; ram.hpp says why. */
export const DATA_OFFSET = 2 ** 37;

function fileBytes(size: number): number {
  return DATA_OFFSET + Math.ceil(size / PAGE) * PAGE;
}

/**
 * Opens or creates the tmpfs file of a RAM disk, sparse, locked against a second user. What is inherited open is taken
 * over with its lock. What has users is never made anew.
 */
export async function openRamFile(
  device: string,
  size: number,
  inherited?: Pick<LeftBackend, 'files' | 'size'>,
): Promise<RamFile> {
  const path = join(SHARED_MEMORY_DIRECTORY, `${device}.ram`);
  const hasUsers = inherited !== undefined && inherited.size !== null;
  const fd = inherited?.files[0] ?? (await openInSharedMemory(path, { what: 'RAM disk file', device, hasUsers }));
  let created = false;
  try {
    const bytes = fileBytes(size);
    const { size: present } = fstatSync(fd);
    created = present === 0 && !hasUsers;
    // The kernel was not told of the rest.
    if (inherited?.size === size && present > bytes) await trim(fd, size);
    else if (!created && present !== bytes) {
      const advice = hasUsers
        ? RESTORE
        : 'it is of a device of that name with another size: configure that size or remove the file';
      throw new SupervisorError(
        `RAM disk file ${path} has ${present} bytes, but a disk of ${size} bytes needs ` + `${bytes}; ${advice}`,
        { code: 'BACKEND', device },
      );
    }
    ftruncateSync(fd, bytes);
  } catch (error) {
    closeSync(fd);
    if (created) await unlink(path);
    throw error;
  }
  return {
    fd,
    created,
    close: () => closeSync(fd),
    grow: (size) => ftruncateSync(fd, fileBytes(size)),
    trim: (size) => trim(fd, size),
    remove: () => unlink(path),
  };
}

/**
 * Truncating zeroes the rest of the last page, whose bit stays. Words of the bitmap of which no page is left are cleared
 * here; the last word may be changing, so its queue processes clear what is behind the end of theirs.
 */
async function trim(fd: number, size: number): Promise<void> {
  ftruncateSync(fd, DATA_OFFSET + size);
  ftruncateSync(fd, fileBytes(size));
  const used = Math.ceil(Math.ceil(size / PAGE) / 64) * 8;
  await fallocate(fd, PUNCH_HOLE | KEEP_SIZE, used, DATA_OFFSET - used);
}
