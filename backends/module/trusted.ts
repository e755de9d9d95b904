import { realpath, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { SupervisorError, errnoOf, reasonOf } from '../../src/errors.js';

const WRITABLE_BY_OTHERS = 0o022;

/**
 * The file's real path. When we are root, whoever can write to the file or to a folder above it could have us run what
 * they like: then all of them must belong to root, or to the user who called sudo, and nobody else may write to them.
 */
export async function trustedPath(path: string): Promise<string> {
  const real = await realpath(path).catch((error: unknown) => {
    throw refused(path, reasonOf(error), errnoOf(error));
  });
  const found = await stat(real);
  if (!found.isFile()) throw refused(path, 'it is no file');
  if (process.geteuid?.() !== 0) return real;
  const owners = new Set([0, Number(process.env.SUDO_UID ?? 0)]);
  for (let place = real; ; place = dirname(place)) {
    const { uid, mode } = await stat(place);
    if (!owners.has(uid) || (mode & WRITABLE_BY_OTHERS) !== 0) {
      throw refused(path, `others may write to ${place}; chown root and chmod go-w`);
    }
    if (place === dirname(place)) return real;
  }
}

function refused(path: string, reason: string, errno?: number): SupervisorError {
  return new SupervisorError(`loading backend ${path} failed: ${reason}`, { code: 'BACKEND', errno });
}
