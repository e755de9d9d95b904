import { lstatSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { deviceNumber } from '../../device-number.js';
import { errnoOf, messageOf, SupervisorError } from '../../errors.js';
import { makeNode } from '../../native/addon/files.js';

/** How our nodes in /dev are called. */
const NODE = /^ublk[bc][0-9]+(?:p[0-9]+)?$/;

let ours: boolean | null = null;

/** The type of the file system that /dev is, by /proc/self/mountinfo; null: it is a directory like others. */
export function typeOfDev(mountinfo: string): string | null {
  let type: string | null = null;
  for (const line of mountinfo.split('\n')) {
    const [place = '', what = ''] = line.split(' - ', 2);
    // The last one of several is on top.
    if (place.split(' ')[4] === '/dev') type = what.split(' ', 1)[0] ?? null;
  }
  return type;
}

/**
 * Makes the node of a device or partition where the kernel does not, as in a container that has a /dev of its own: without
 * it neither queue processes nor users could open the device. One that an earlier device of that name left is replaced.
 */
export function ensureNode(name: string): void {
  const path = `/dev/${name}`;
  const number = numberOf(name);
  const found = lstatSync(path, { throwIfNoEntry: false });
  const isNode = found?.isBlockDevice() === true || found?.isCharacterDevice() === true;
  if (number === null || (isNode && deviceNumber(found.rdev) === number) || !nodesAreOurs()) return;
  try {
    rmSync(path, { force: true });
    const [major = 0, minor = 0] = number.split(':').map(Number);
    makeNode(path, name.startsWith('ublkb'), major, minor);
  } catch (error) {
    const code = error instanceof SupervisorError ? error.code : 'OS';
    const message = `making ${path}, which the kernel does not in a /dev like this, failed: ${messageOf(error)}`;
    throw new SupervisorError(message, { code, errno: errnoOf(error), cause: error });
  }
}

/** Removes the nodes of what is gone: their numbers may become those of other devices. */
export function removeStaleNodes(): void {
  if (!nodesAreOurs()) return;
  for (const name of readdirSync('/dev')) {
    if (NODE.test(name) && numberOf(name) === null) rmSync(`/dev/${name}`, { force: true });
  }
}

/** `major:minor`; null: there is no such device. */
function numberOf(name: string): string | null {
  const kind = name.startsWith('ublkc') ? 'ublk-char' : 'block';
  try {
    return readFileSync(`/sys/class/${kind}/${name}/dev`, 'utf8').trim();
  } catch {
    return null;
  }
}

function nodesAreOurs(): boolean {
  ours ??= typeOfDev(readFileSync('/proc/self/mountinfo', 'utf8')) !== 'devtmpfs';
  return ours;
}
