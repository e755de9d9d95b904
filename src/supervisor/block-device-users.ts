import { readdir, readFile, readlink, stat } from 'node:fs/promises';
import { deviceNumber } from '../device-number.js';

/**
 * Who has /dev/ublkbN open, mounted, or as swap or lower device, each in a few words for an error message. Read from
 * /proc and /sys only: opening the block device ourselves could wait for I/O that nobody serves.
 */
export async function holdersOf(id: number): Promise<string[]> {
  const path = `/dev/ublkb${String(id)}`;
  const node = await stat(path).catch(() => null);
  if (!node) return [];
  const [stacked, swaps, processes] = await Promise.all([
    readdir(`/sys/block/ublkb${String(id)}/holders`).catch(() => []),
    readFile('/proc/swaps', 'utf8').catch(() => ''),
    processHolders(path, node.rdev),
  ]);
  const holders = new Set(stacked.map((name) => `/dev/${name}`));
  if (swaps.split('\n').some((line) => line.startsWith(`${path} `))) holders.add('swap');
  for (const holder of processes) holders.add(holder);
  return [...holders];
}

async function processHolders(path: string, rdev: number): Promise<string[]> {
  const device = deviceNumber(rdev);
  const pids = (await readdir('/proc')).filter((name) => /^[0-9]+$/.test(name));
  const seenNamespaces = new Set<string>();
  const found: string[] = [];
  for (const pid of pids) {
    // Processes come and go while we look; one that is gone holds nothing.
    const namespace = await readlink(`/proc/${pid}/ns/mnt`).catch(() => '');
    if (namespace !== '' && !seenNamespaces.has(namespace)) {
      seenNamespaces.add(namespace);
      found.push(...(await mountsOf(pid, device)));
    }
    if (await hasOpen(pid, path)) found.push(`${await commandOf(pid)} (pid ${pid})`);
  }
  return found;
}

/** Mount points of a process' namespace whose file system is on `device` (`major:minor`). */
async function mountsOf(pid: string, device: string): Promise<string[]> {
  const table = await readFile(`/proc/${pid}/mountinfo`, 'utf8').catch(() => '');
  return table
    .split('\n')
    .map((line) => line.split(' '))
    .filter((fields) => fields[2] === device)
    .map((fields) => `a mount at ${unescaped(fields[4] ?? '?')}`);
}

/** The kernel writes blanks and backslashes in mount points as octal numbers. */
function unescaped(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_match, octal: string) => String.fromCharCode(parseInt(octal, 8)));
}

async function hasOpen(pid: string, path: string): Promise<boolean> {
  const fds = await readdir(`/proc/${pid}/fd`).catch(() => []);
  for (const fd of fds) {
    if ((await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')) === path) return true;
  }
  return false;
}

async function commandOf(pid: string): Promise<string> {
  return (await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => 'a process')).trim();
}
