import { chmod, lstat, mkdir, statfs } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { SupervisorError } from '../src/errors.js';

/** Where backends keep what lives in memory and outlives every process: a directory of our own below /dev/shm. */
export const SHARED_MEMORY_DIRECTORY = '/dev/shm/ublk-supervisor';

/**
 * Makes the directory. /dev/shm is world-writable, so nobody else may be able to plant links or files in it. Others may
 * pass through it, as backends in JavaScript with a user of their own have to, but not see what is there.
 */
export async function ensureSharedMemoryDirectory(): Promise<void> {
  await mkdir(SHARED_MEMORY_DIRECTORY, { mode: 0o711 }).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
  });
  const found = await lstat(SHARED_MEMORY_DIRECTORY);
  if (!found.isDirectory() || found.uid !== process.geteuid?.() || (found.mode & 0o022) !== 0) {
    throw new SupervisorError(`${SHARED_MEMORY_DIRECTORY} is not a directory that only we can write to; remove it`, {
      code: 'BACKEND',
    });
  }
  if ((found.mode & 0o777) !== 0o711) await chmod(SHARED_MEMORY_DIRECTORY, 0o711);
}

/** Bytes that all that lives there may have together. */
export async function roomInSharedMemory(): Promise<number> {
  const { blocks, bsize } = await statfs(SHARED_MEMORY_DIRECTORY);
  // A tmpfs without a limit has no blocks.
  return blocks === 0 ? totalmem() : Math.min(blocks * bsize, totalmem());
}
