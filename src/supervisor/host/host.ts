import { accessSync, constants, readFileSync, readdirSync, statSync, statfsSync, type Stats } from 'node:fs';
import { release } from 'node:os';
import { ioUringErrno, ublkFeatures } from '../../native/addon/system.js';
import { packageRoot } from '../../package-root.js';

/** What the checks look at, so that a test can be another machine. */
export interface Host {
  readonly release: string;
  /** Where this is installed. */
  readonly packageRoot: string;
  /** undefined: it cannot be read. */
  readText(path: string): string | undefined;
  /** undefined: it does not exist. */
  stat(path: string): Pick<Stats, 'mode' | 'isDirectory'> | undefined;
  writable(path: string): boolean;
  /** Names in a directory; none where there is no such directory. */
  list(path: string): readonly string[];
  /** Bytes that the file system of `path` holds, Infinity: without a limit; undefined: there is none. */
  capacity(path: string): number | undefined;
  ublkFeatures(): bigint;
  ioUringErrno(): number;
}

export const thisHost: Host = {
  release: release(),
  packageRoot,
  readText(path) {
    try {
      return readFileSync(path, 'utf8');
    } catch {
      return undefined;
    }
  },
  stat: (path) => statSync(path, { throwIfNoEntry: false }),
  writable(path) {
    try {
      accessSync(path, constants.R_OK | constants.W_OK);
      return true;
    } catch {
      return false;
    }
  },
  list(path) {
    try {
      return readdirSync(path);
    } catch {
      return [];
    }
  },
  capacity(path) {
    try {
      const { blocks, bsize } = statfsSync(path);
      // So a tmpfs without a limit says it.
      return blocks === 0 ? Infinity : blocks * bsize;
    } catch {
      return undefined;
    }
  },
  ublkFeatures,
  ioUringErrno,
};
