import { loadAddon, translated } from './load.js';

/** A user and the one group that goes with it. */
export interface User {
  readonly uid: number;
  readonly gid: number;
}

/** The process at the other end of a connection. */
export interface Peer {
  readonly uid: number;
  /** It has CAP_SYS_ADMIN, and not only in a user namespace of its own; or this process lacks it too. */
  readonly administrates: boolean;
}

/** In place of a uid and a gid: the process goes on as who it is; `kSameUser` of user.hpp. */
export const SAME_USER = 0xffffffff;

interface Addon {
  userOf(nameOrUid: string | number): User | null;
  groupOf(name: string): number | null;
  peerOf(fd: number): Peer;
}

const addon = (): Addon => loadAddon() as Addon;

/** The user of this name or uid, with its own group; null: there is none. */
export function userOf(nameOrUid: string | number): User | null {
  return translated(() => addon().userOf(nameOrUid));
}

/** The gid of the group of this name; null: there is none. */
export function groupOf(name: string): number | null {
  return translated(() => addon().groupOf(name));
}

/** The process that connected to the unix socket whose accepted end is `fd`. Throws when it is gone. */
export function peerOf(fd: number): Peer {
  return translated(() => addon().peerOf(fd));
}
