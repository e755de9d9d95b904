import { accessSync, constants, readFileSync, statSync, type Stats } from 'node:fs';
import { release } from 'node:os';
import { ioUringErrno, ublkFeatures } from '../native/binding.js';
import { packageRoot } from '../package-root.js';

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
  ublkFeatures,
  ioUringErrno,
};
