import { chmod, lchown } from 'node:fs/promises';
import { dirname } from 'node:path';
import { SupervisorError, errnoOf, reasonOf } from '../errors.js';
import { groupOf } from '../native/addon/accounts.js';

/**
 * Lets the members of a group connect to the control socket, to read: the socket and its directory become the group's.
 * Rejects with `USAGE` when there is no such group, else with `RUNTIME_DIR`.
 */
export async function shareWithGroup(socketPath: string, group: string): Promise<void> {
  const gid = groupOf(group);
  if (gid === null) {
    throw new SupervisorError(`--group: there is no group ${JSON.stringify(group)}; see getent group`, {
      code: 'USAGE',
    });
  }
  const directory = dirname(socketPath);
  const uid = process.geteuid?.() ?? 0;
  try {
    await lchown(directory, uid, gid);
    await chmod(directory, 0o750);
    await lchown(socketPath, uid, gid);
  } catch (error) {
    throw new SupervisorError(`giving ${socketPath} to group ${group} failed: ${reasonOf(error)}`, {
      code: 'RUNTIME_DIR',
      errno: errnoOf(error),
      cause: error,
    });
  }
}
