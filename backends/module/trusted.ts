import { realpath, stat } from 'node:fs/promises';
import { SupervisorError, errnoOf, reasonOf } from '../../src/errors.js';
import { STICKY, writableByOthers } from '../../src/trusted.js';

/** The file's real path. Rejects with `BACKEND` when others could have put something of theirs there. */
export async function trustedPath(path: string): Promise<string> {
  const real = await realpath(path).catch((error: unknown) => {
    throw refused(path, reasonOf(error), errnoOf(error));
  });
  if (!(await stat(real)).isFile()) throw refused(path, 'it is no file');
  // Not even in /tmp: a bare import is looked for in `node_modules` of every folder above the module.
  const place = await writableByOthers(real, { sticky: false });
  if (place !== undefined) {
    const { mode } = await stat(place);
    const advice =
      (mode & STICKY) === 0 ? 'chown root and chmod go-w' : 'move the backend to where only root can make files';
    throw refused(path, `others may write to ${place}; ${advice}`);
  }
  return real;
}

function refused(path: string, reason: string, errno?: number): SupervisorError {
  return new SupervisorError(`loading backend ${path} failed: ${reason}`, { code: 'BACKEND', errno });
}
