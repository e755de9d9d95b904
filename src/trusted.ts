import type { Stats } from 'node:fs';
import { stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { packageRoot } from './package-root.js';

const BY_GROUP = 0o020;
const BY_ALL = 0o002;
/** Mode of a folder in which only the owner of a file may replace it, such as /tmp. */
export const STICKY = 0o1000;

/** Whether `lstat` found a directory, no link to one, in which this user alone can make or remove anything. */
export function isOurDirectory(found: Stats): boolean {
  return found.isDirectory() && found.uid === process.geteuid?.() && (found.mode & (BY_GROUP | BY_ALL)) === 0;
}

export interface TrustOptions {
  /** A sticky folder that everybody may write to, such as /tmp, will do: a user cannot replace another user's files there. */
  readonly sticky: boolean;
}

/**
 * When we are root, a user who may write to a file that we obey, or to a folder above it, is as good as root.
 * Resolves with the first such place from the absolute `path` upwards, links in which have to be resolved; undefined:
 * nobody but those who may is able to. These are root, the user who called sudo, and whoever owns this program, which
 * root is running anyway.
 */
export async function writableByOthers(path: string, { sticky }: TrustOptions): Promise<string | undefined> {
  if (process.geteuid?.() !== 0) return undefined;
  const program = await stat(packageRoot);
  const owners = new Set([0, Number(process.env.SUDO_UID ?? 0), program.uid]);
  const group = (program.mode & BY_GROUP) === 0 ? undefined : program.gid;
  for (let place = path; ; place = dirname(place)) {
    const found = await stat(place);
    const isSticky = sticky && found.isDirectory() && (found.mode & STICKY) !== 0;
    const byGroup = (found.mode & BY_GROUP) !== 0 && found.gid !== group;
    const byAll = (found.mode & BY_ALL) !== 0;
    if (!owners.has(found.uid) || ((byGroup || byAll) && !isSticky)) return place;
    if (place === dirname(place)) return undefined;
  }
}
