import { closeSync, fstatSync, readSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { SupervisorError } from '../../src/errors.js';
import { FIRST_PAGE } from '../../src/channel/memory-layout.js';
import type { LeftBackend } from '../interface.js';
import { RESTORE, SHARED_MEMORY_DIRECTORY, openInSharedMemory } from '../shared-memory.js';

/** The file that a device's shared memory is in. Root's, and handed to the processes, which may be of another user, open. */
export interface MemoryFile {
  readonly fd: number;
  /** There was none of this device before. */
  readonly created: boolean;
  remove(): Promise<void>;
}

export const memoryFileOf = (device: string): string => join(SHARED_MEMORY_DIRECTORY, `${device}.shared`);

/**
 * Opens or creates it, locked against a second user. What is inherited open is taken over with its lock, whatever its path names
 * by now. What has users is never made anew.
 */
export async function openMemoryFile(
  device: string,
  inherited?: Pick<LeftBackend, 'files' | 'size'>,
): Promise<MemoryFile> {
  const path = memoryFileOf(device);
  const remove = (): Promise<void> => rm(path, { force: true });
  const [open] = inherited?.files ?? [];
  if (open !== undefined) return { fd: open, created: false, remove };
  const hasUsers = inherited !== undefined && inherited.size !== null;
  const fd = await openInSharedMemory(path, { what: 'shared memory', device, hasUsers });
  try {
    const created = fstatSync(fd).size === 0 && !hasUsers;
    if (created) writeSync(fd, FIRST_PAGE);
    const first = Buffer.alloc(FIRST_PAGE.length);
    readSync(fd, first, 0, first.length, 0);
    if (first.equals(FIRST_PAGE)) return { fd, created, remove };
    const message = `shared memory ${path} is not what it was made as; ${hasUsers ? RESTORE : 'remove it'}`;
    throw new SupervisorError(message, { code: 'BACKEND', device });
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}
