import { constants } from 'node:fs';
import { open, readlink, type FileHandle } from 'node:fs/promises';
import { basename } from 'node:path';
import { errnoOf } from '../../src/errors.js';

/** Of open(2): a reference to what is there, which waits for nothing and needs no permission. Node does not name it. */
const O_PATH = 0o10000000;
const ENOENT = 2;
const MOST_LINKS = 40;

/** A path of the very file that is open, whatever became of its names. */
export const pathOf = ({ fd }: Pick<FileHandle, 'fd'>): string => `/proc/self/fd/${fd}`;

/** What a path names at one moment, held so that renaming can change nothing about it. */
export interface Located extends AsyncDisposable {
  readonly directory: FileHandle;
  /** A path of the name in that very directory. */
  readonly path: string;
  /** Opened with O_PATH; null: the directory has nothing of that name. */
  readonly found: FileHandle | null;
}

/**
 * Walks an absolute path, directory by directory. A symbolic link is followed only in a directory that nobody but root
 * and this user can write to: others could point it at any file, which the supervisor may open as root.
 * Rejects with the error of the system call that failed, or says in words what is in the way.
 */
export async function locate(path: string): Promise<Located> {
  const names = path.split('/').filter((name) => name !== '');
  let directory = await open('/', O_PATH);
  let links = 0;
  try {
    for (;;) {
      const name = names.shift() ?? '.';
      const at = `${pathOf(directory)}/${name}`;
      const found = await openPath(at, names.length === 0);
      if (found === null) return located(directory, at, found);
      if ((await found.stat()).isSymbolicLink()) {
        await found.close();
        links += 1;
        if (links > MOST_LINKS) throw new Error('it leads through too many symbolic links');
        if (await othersCanWrite(directory)) {
          throw new Error(`others could have made the symbolic link ${name}; name the file itself`);
        }
        const target = await readlink(at);
        names.unshift(...target.split('/').filter((part) => part !== ''));
        if (target.startsWith('/')) {
          await directory.close();
          directory = await open('/', O_PATH);
        }
      } else if (names.length === 0) {
        return located(directory, at, found);
      } else {
        await found.close();
        // Not what was found: an automount may have put a file system there when it was opened.
        const entered = await open(at, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW);
        await directory.close();
        directory = entered;
      }
    }
  } catch (error) {
    await directory.close();
    throw error;
  }
}

function located(directory: FileHandle, path: string, found: FileHandle | null): Located {
  return {
    directory,
    path,
    found,
    async [Symbol.asyncDispose]() {
      await found?.close();
      await directory.close();
    },
  };
}

async function openPath(path: string, mayBeMissing: boolean): Promise<FileHandle | null> {
  try {
    return await open(path, O_PATH | constants.O_NOFOLLOW);
  } catch (error) {
    if (errnoOf(error) === ENOENT) {
      if (mayBeMissing) return null;
      throw new Error(`there is no directory ${basename(path)} on the way to it (ENOENT)`, { cause: error });
    }
    throw error;
  }
}

async function othersCanWrite(directory: FileHandle): Promise<boolean> {
  const { uid, mode } = await directory.stat();
  return (uid !== 0 && uid !== process.geteuid?.()) || (mode & 0o022) !== 0;
}
