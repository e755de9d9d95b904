import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { chmod, lstat, mkdir, statfs } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { SupervisorError, reasonOf } from '../src/errors.js';
import { flock } from '../src/native/addon/files.js';
import { isOurDirectory } from '../src/trusted.js';

/** Where backends keep what lives in memory and outlives every process: a directory of our own below /dev/shm. */
export const SHARED_MEMORY_DIRECTORY = '/dev/shm/ublk-supervisor';

/**
 * Makes the directory. /dev/shm is world-writable, so no other user may be able to plant links or files in it, or remove
 * them; systemd-logind removes what belongs to a user who logs out, wherever it is.
 */
async function ensureSharedMemoryDirectory(): Promise<void> {
  await mkdir(SHARED_MEMORY_DIRECTORY, { mode: 0o700 }).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
  });
  const found = await lstat(SHARED_MEMORY_DIRECTORY);
  if (!isOurDirectory(found)) {
    throw new SupervisorError(`${SHARED_MEMORY_DIRECTORY} is not a directory that only we can write to; remove it`, {
      code: 'BACKEND',
    });
  }
  if ((found.mode & 0o777) !== 0o700) await chmod(SHARED_MEMORY_DIRECTORY, 0o700);
}

/** What to do when the data that a device's users know is not there. */
export const RESTORE = 'restore it, or stop the device with --force and add it anew';

/**
 * Opens a file of a device there, locked against a second user, other supervisors too. `hasUsers`: then it is never made. `what`
 * it is, for messages. The lock goes with the last who has the file from here.
 */
export async function openInSharedMemory(
  path: string,
  { what, device, hasUsers }: { readonly what: string; readonly device: string; readonly hasUsers: boolean },
): Promise<number> {
  await ensureSharedMemoryDirectory();
  const fd = openFile(path, { what, device, hasUsers });
  try {
    // The file's last owner may have removed it before we locked it.
    if (!(await flock(fd)) || fstatSync(fd).nlink === 0) {
      const message = `${what} ${path} is in use by another process; use another device name`;
      throw new SupervisorError(message, { code: 'IN_USE', device });
    }
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function openFile(
  path: string,
  { what, device, hasUsers }: { readonly what: string; readonly device: string; readonly hasUsers: boolean },
): number {
  try {
    return openSync(path, constants.O_RDWR | (hasUsers ? 0 : constants.O_CREAT) | constants.O_NOFOLLOW, 0o600);
  } catch (error) {
    const advice = hasUsers ? `; ${RESTORE}` : '';
    const message = `opening ${what} ${path} failed: ${reasonOf(error)}${advice}`;
    throw new SupervisorError(message, { code: 'BACKEND', device, cause: error });
  }
}

/** Bytes that all that lives there may have together. */
export async function roomInSharedMemory(): Promise<number> {
  const { blocks, bsize } = await statfs(SHARED_MEMORY_DIRECTORY);
  // A tmpfs without a limit has no blocks.
  return blocks === 0 ? totalmem() : Math.min(blocks * bsize, totalmem());
}
