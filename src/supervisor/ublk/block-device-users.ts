import { existsSync } from 'node:fs';
import { readdir, readFile, readlink, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { deviceNumber } from '../../device-number.js';
import type { LoopDevice, OpenBlockDevices } from '../../native/addon/block-devices.js';

/**
 * Who uses /dev/ublkbN, in words for an error message: /proc and /sys are read, and block devices are not opened. That it is
 * in use at all is for the kernel to say; see claims.ts.
 */

/** How many users a message names. */
const MOST_NAMED = 8;

/** A block device that has to do with ublkbN: itself, a partition, or a device that was made of one of those. */
interface Layer {
  readonly name: string;
  /** `major:minor` */
  readonly device: string;
  /** What it is on; null: it is ublkbN. */
  readonly below: string | null;
  readonly isPartition: boolean;
}

interface Mount {
  readonly device: string;
  readonly point: string;
  readonly type: string;
  readonly source: string;
  readonly options: readonly string[];
  /** A process that has it, where this one does not; null: this one has. */
  readonly elsewhere: string | null;
}

/** The processes, other than `ours`, that have the device or a partition open without a claim. */
export async function openersOf(
  id: number,
  { openers, loops }: OpenBlockDevices,
  ours: ReadonlySet<number>,
): Promise<string[]> {
  const parts = await partsOf(blockName(id));
  const found = parts.flatMap((part) => loopsOn(part, loops).map((loop) => `/dev/${loop.name}${on(part)}`));
  for (const part of parts) {
    for (const { pid, device } of openers) {
      if (device === part.device && !ours.has(pid)) found.push(`${await commandOf(String(pid))}${withOpen(part)}`);
    }
  }
  return found;
}

/** What all devices have in common, asked once. */
export interface SystemUsers {
  readonly open: OpenBlockDevices;
  readonly mounts: readonly Mount[];
  /** Paths. */
  readonly swaps: readonly string[];
  /** The devices of each btrfs that is mounted. */
  readonly btrfs: readonly (readonly string[])[];
}

export async function readSystemUsers(open: OpenBlockDevices): Promise<SystemUsers> {
  const [mounts, swaps, btrfs] = await Promise.all([readMounts(), readSwaps(), readBtrfs()]);
  return { open, mounts, swaps, btrfs };
}

/** All users of the device, also of what was made of it. At least one entry, because the device is known to be in use. */
export async function usersOf(id: number, system: SystemUsers, ours: ReadonlySet<number>): Promise<string[]> {
  const found = new Set<string>();
  for (const layer of await layersOf(blockName(id), system.open.loops)) {
    const { name, device, below, isPartition } = layer;
    if (below !== null && !isPartition) found.add(`/dev/${name}${await titleOf(name)} on /dev/${below}`);
    for (const mount of await mountsOf(layer, system)) found.add(mount);
    for (const path of system.swaps) {
      if (path === `/dev/${name}` || (await deviceOf(path)) === device)
        found.add(below === null ? 'swap' : `swap${on(layer)}`);
    }
    if (existsSync(`/proc/fs/jbd2/${name}`)) found.add(`the journal of another device's file system${on(layer)}`);
    for (const opener of system.open.openers) {
      if (opener.device !== device || ours.has(opener.pid)) continue;
      found.add(`${await commandOf(String(opener.pid))}${withOpen(layer)}`);
    }
  }
  if (found.size === 0) found.add(await hiddenUserOf(blockName(id)));
  const users = [...found];
  const more = users.length - MOST_NAMED;
  return more > 0 ? [...users.slice(0, MOST_NAMED), `${more} more`] : users;
}

const blockName = (id: number): string => `ublkb${id}`;

/** ` on /dev/ublkb0p1`; nothing for ublkbN itself. */
const on = ({ name, below }: Layer): string => (below === null ? '' : ` on /dev/${name}`);

const withOpen = ({ name, below }: Layer): string => (below === null ? '' : ` with /dev/${name} open`);

/** A device and its partitions, those of a device that is not there are none. */
async function partsOf(name: string, below: string | null = null): Promise<Layer[]> {
  const directory = `/sys/class/block/${name}`;
  const numberOf = (path: string): Promise<string> =>
    readFile(`${path}/dev`, 'utf8').then(
      (text) => text.trim(),
      () => '',
    );
  const device = await numberOf(directory);
  if (device === '') return [];
  const partitions = (await readdir(directory).catch(() => [])).filter((entry) => entry.startsWith(name));
  const parts = partitions.map(async (partition) => ({
    name: partition,
    device: await numberOf(`${directory}/${partition}`),
    below: name,
    isPartition: true,
  }));
  return [{ name, device, below, isPartition: false }, ...(await Promise.all(parts))];
}

/** A device, its partitions, and what was made of them, and so on. */
async function layersOf(
  name: string,
  loops: readonly LoopDevice[],
  below: string | null = null,
  seen = new Set<string>(),
): Promise<Layer[]> {
  if (seen.has(name)) return [];
  seen.add(name);
  const layers: Layer[] = [];
  for (const part of await partsOf(name, below)) {
    layers.push(part);
    const holders = await readdir(`/sys/class/block/${part.name}/holders`).catch(() => []);
    for (const above of [...holders, ...loopsOn(part, loops).map((loop) => loop.name)]) {
      layers.push(...(await layersOf(above, loops, part.name, seen)));
    }
  }
  return layers;
}

function loopsOn({ name, device }: Layer, loops: readonly LoopDevice[]): LoopDevice[] {
  return loops.filter((loop) => (loop.device === '' ? loop.backingFile === `/dev/${name}` : loop.device === device));
}

/** ` (vg-lv)`: what a device of the device mapper is called. */
async function titleOf(name: string): Promise<string> {
  const title = await readFile(`/sys/class/block/${name}/dm/name`, 'utf8').catch(() => '');
  return title === '' ? '' : ` (${title.trim()})`;
}

async function mountsOf(layer: Layer, { mounts, btrfs }: SystemUsers): Promise<string[]> {
  const { name, device, below } = layer;
  const of = below === null ? '' : ` of /dev/${name}`;
  const path = `/dev/${name}`;
  const volume = btrfs.find((devices) => devices.includes(name)) ?? [];
  const found: string[] = [];
  for (const mount of mounts) {
    const where = `at ${mount.point}${mount.elsewhere === null ? '' : ` in the mount namespace of ${mount.elsewhere}`}`;
    if (mount.device === device) found.push(`a mount${of} ${where}`);
    else if (mount.type === 'btrfs' && volume.includes(await nameOf(mount.source))) {
      found.push(`a btrfs mount of ${volume.map((one) => `/dev/${one}`).join(' and ')} ${where}`);
    } else if (mount.source.split(':').includes(path)) found.push(`a mount${of} ${where}`);
    else if (mount.options.some((option) => option.endsWith(`=${path}`))) {
      found.push(`a mount whose log or data is on ${path} ${where}`);
    }
  }
  return found;
}

/** The mounts of all mount namespaces that a process is in. */
async function readMounts(): Promise<Mount[]> {
  const self = String(process.pid);
  const others = (await readdir('/proc')).filter((name) => /^[0-9]+$/.test(name) && name !== self);
  const seenNamespaces = new Set<string>();
  const seenMounts = new Set<string>();
  const mounts: Mount[] = [];
  for (const pid of [self, ...others]) {
    // Processes come and go while we look; one that is gone uses nothing.
    const namespace = await readlink(`/proc/${pid}/ns/mnt`).catch(() => '');
    if (namespace === '' || seenNamespaces.has(namespace)) continue;
    seenNamespaces.add(namespace);
    const table = await readFile(`/proc/${pid}/mountinfo`, 'utf8').catch(() => '');
    const elsewhere = pid === self ? null : await commandOf(pid);
    for (const line of table.split('\n')) {
      const mount = mountOf(line, elsewhere);
      const key = mount === null ? '' : `${mount.device} ${mount.point}`;
      if (mount === null || seenMounts.has(key)) continue;
      seenMounts.add(key);
      mounts.push(mount);
    }
  }
  return mounts;
}

/** A line of /proc/PID/mountinfo. */
function mountOf(line: string, elsewhere: string | null): Mount | null {
  const [place = '', what = ''] = line.split(' - ', 2);
  const [, , device, , point] = place.split(' ');
  const [type, source, options] = what.split(' ');
  if (device === undefined || point === undefined || type === undefined) return null;
  return {
    device,
    point: unescaped(point),
    type,
    source: unescaped(source ?? ''),
    options: unescaped(options ?? '').split(','),
    elsewhere,
  };
}

async function readSwaps(): Promise<string[]> {
  const table = await readFile('/proc/swaps', 'utf8').catch(() => '');
  const lines = table.split('\n').slice(1);
  return lines.flatMap((line) => (line === '' ? [] : unescaped(line.split(' ', 1)[0] ?? '')));
}

async function readBtrfs(): Promise<string[][]> {
  const volumes = await readdir('/sys/fs/btrfs').catch(() => []);
  return Promise.all(volumes.map((volume) => readdir(`/sys/fs/btrfs/${volume}/devices`).catch(() => [])));
}

/** The number of a device by its path in /dev; other paths may be on a file system that does not answer. */
async function deviceOf(path: string): Promise<string> {
  if (!path.startsWith('/dev/')) return '';
  const node = await stat(path).catch(() => null);
  return node?.isBlockDevice() === true ? deviceNumber(node.rdev) : '';
}

/** `dm-0` for /dev/mapper/vg-lv */
async function nameOf(path: string): Promise<string> {
  const device = await deviceOf(path);
  return device === '' ? '' : basename(await readlink(`/sys/dev/block/${device}`).catch(() => ''));
}

/** What messages say of a claim when no process and no holder of the device is known. */
async function hiddenUserOf(name: string): Promise<string> {
  const types = await readdir('/sys/fs').catch(() => []);
  const type = types.find((one) => existsSync(`/sys/fs/${one}/${name}`));
  return type === undefined
    ? 'somebody in the kernel whom /proc and /sys do not name'
    : `a file system (${type}) that is mounted where no process sees it, or was unmounted lazily`;
}

/** The kernel writes blanks and backslashes in paths as octal numbers. */
function unescaped(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_match, octal: string) => String.fromCharCode(parseInt(octal, 8)));
}

async function commandOf(pid: string): Promise<string> {
  const command = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => 'a process');
  return `${command.trim()} (pid ${pid})`;
}
