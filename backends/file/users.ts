import { readdir, readFile, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { deviceNumber } from '../../src/device-number.js';

/** What else uses a file, which a lock of flock(2) does not tell. */

const LOCKS = '/proc/locks';
const BLOCK_DEVICES = '/sys/block';

export interface FileIdentity {
  readonly dev: number;
  readonly ino: number;
}

/** Names the other user of the file and says what to do about it, in a few words; null: there is none. */
export async function otherUserOf(path: string, file: FileIdentity): Promise<string | null> {
  const loop = await loopOf(path, file);
  if (loop !== null) return `it is attached to /dev/${loop}; detach it (losetup -d /dev/${loop})`;
  const pid = await lockedBy(file);
  return pid === null ? null : `process ${pid} has locked it, or a part of it; end that`;
}

/** The loop device that has a file of that name; others are not looked for, as their file systems may not answer. */
async function loopOf(path: string, { dev, ino }: FileIdentity): Promise<string | null> {
  for (const name of (await readdir(BLOCK_DEVICES)).filter((each) => each.startsWith('loop'))) {
    const backing = await readFile(`${BLOCK_DEVICES}/${name}/loop/backing_file`, 'utf8').catch(() => '');
    if (basename(backing.trimEnd()) !== basename(path)) continue;
    const found = await stat(backing.trimEnd()).catch(() => null);
    if (found?.dev === dev && found.ino === ino) return name;
  }
  return null;
}

/** By fcntl(2), as QEMU and databases lock: "1: OFDLCK ADVISORY  WRITE 708 08:01:1234 0 EOF", the device in hexadecimal. */
async function lockedBy({ dev, ino }: FileIdentity): Promise<string | null> {
  const [major, minor] = deviceNumber(dev).split(':').map(Number);
  const hexadecimal = (number = 0): string => number.toString(16).padStart(2, '0');
  const place = `${hexadecimal(major)}:${hexadecimal(minor)}:${ino}`;
  for (const line of (await readFile(LOCKS, 'utf8')).split('\n')) {
    const [, type, , , pid, where] = line.split(/\s+/);
    if ((type === 'POSIX' || type === 'OFDLCK') && where === place) return pid ?? '';
  }
  return null;
}
