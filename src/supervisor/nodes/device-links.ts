import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { deviceNumber } from '../../device-number.js';
import { messageOf } from '../../errors.js';
import type { Log } from '../../log/log.js';
import { ensureNode, removeStaleNodes } from './device-nodes.js';
import type { DeviceChange } from '../../api/status.js';
import { isOurDirectory } from '../../trusted.js';

const PARENT = '/dev/ublk';
const DIRECTORY = `${PARENT}/by-name`;
const SECTOR = 512;
/** How our links look; whatever else is in the directory is not touched. */
const TARGET = /^\.\.\/\.\.\/(ublkb[0-9]+(?:p[0-9]+)?)$/;

/**
 * The links /dev/ublk/by-name/NAME, and NAME-partM for its partitions. One is there while its device can be used: it is made when the device is live, and
 * removed before the device is. Everything here is a few system calls on files in memory, none of which can wait for a
 * device, so it is done at once and in order.
 */
export class DeviceLinks {
  readonly #log: Log;
  /** The targets of links by the links' names. */
  readonly #targets = new Map<string, string>();

  constructor(log: Log) {
    this.#log = log;
  }

  /** Removes the links of devices that do not exist, which supervisors left that were killed. */
  removeStale(): void {
    this.#try('removing stale nodes', removeStaleNodes);
    if (!existsSync(DIRECTORY)) return;
    this.#try('removing stale links', () => {
      assertSafe();
      for (const name of readdirSync(DIRECTORY)) {
        const node = TARGET.exec(targetOf(name) ?? '')?.[1];
        if (node !== undefined && !existsSync(`/dev/${node}`)) rmSync(join(DIRECTORY, name));
      }
    });
  }

  /** To be told of every change of a device's state, before anything follows from it. */
  deviceChanged(device: DeviceChange): void {
    if (device.blockDevice === 'usable') {
      this.#try(`making ${join(DIRECTORY, device.name)}`, () =>
        this.#make(device.name, `ublkb${String(device.id)}`, device.size),
      );
    } else if (device.blockDevice === 'absent') {
      this.#try(`removing ${join(DIRECTORY, device.name)}`, () => this.#remove(device.name));
    }
  }

  /** `numbers`: of the partitions that /dev/ublkbN has now. */
  partitionsChanged(device: string, id: number, numbers: readonly number[]): void {
    const node = `ublkb${id}p`;
    const names = new Set(numbers.map((number) => `${device}-part${number}`));
    this.#try(`removing links to partitions of ${device}`, () => {
      // An earlier supervisor may have made them.
      for (const name of existsSync(DIRECTORY) ? readdirSync(DIRECTORY) : []) {
        const target = targetOf(name) ?? '';
        if (!name.startsWith(`${device}-part`) || !target.startsWith(`../../${node}`) || names.has(name)) continue;
        rmSync(join(DIRECTORY, name));
        this.#targets.delete(name);
      }
      removeStaleNodes();
    });
    for (const number of numbers) {
      const name = `${device}-part${number}`;
      this.#try(`making ${join(DIRECTORY, name)}`, () => this.#make(name, `${node}${number}`, null));
    }
  }

  /** `size`: bytes; null: whatever it has. */
  #make(name: string, node: string, size: number | null): void {
    const target = `../../${node}`;
    // A recovery leaves the device, and so its link, as it was.
    if (this.#targets.get(name) === target) return;
    makeDirectory();
    assertSafe();
    ensureNode(node);
    assertDevice(node, size);
    const found = TARGET.exec(targetOf(name) ?? '')?.[1];
    const path = join(DIRECTORY, name);
    if (found === undefined ? isThere(path) : found !== node && existsSync(`/dev/${found}`)) {
      throw new Error('the name is taken by something else');
    }
    // No device's name begins with a dot.
    const temporary = join(DIRECTORY, `.${name}`);
    rmSync(temporary, { force: true });
    symlinkSync(target, temporary);
    renameSync(temporary, path);
    this.#targets.set(name, target);
    // With our rules udev tells systemd of the new name when it looks at the device again.
    writeFileSync(`/sys/class/block/${node}/uevent`, 'change');
  }

  #remove(name: string): void {
    const target = this.#targets.get(name);
    if (target === undefined) return;
    this.#targets.delete(name);
    if (targetOf(name) === target) rmSync(join(DIRECTORY, name));
  }

  /** A device without its link is better than none. */
  #try(operation: string, act: () => void): void {
    try {
      act();
    } catch (error) {
      this.#log.warn({}, `${operation} failed: ${messageOf(error)}`);
    }
  }
}

/** null: it is no link. */
function targetOf(name: string): string | null {
  try {
    return readlinkSync(join(DIRECTORY, name));
  } catch {
    return null;
  }
}

const isThere = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined;

/** Everybody may read it, whatever the umask is. */
function makeDirectory(): void {
  const umask = process.umask(0o022);
  try {
    mkdirSync(DIRECTORY, { recursive: true });
  } finally {
    process.umask(umask);
  }
}

function assertSafe(): void {
  for (const place of [PARENT, DIRECTORY]) {
    if (!isOurDirectory(lstatSync(place))) throw new Error(`${place} is not a directory that only we can write to`);
  }
}

/** That the node is this device's. Nothing is opened: that could wait for I/O, and would look like a user. */
function assertDevice(node: string, size: number | null): void {
  const attribute = (name: string): string => readFileSync(`/sys/class/block/${node}/${name}`, 'utf8').trim();
  const found = lstatSync(`/dev/${node}`);
  if (!found.isBlockDevice() || deviceNumber(found.rdev) !== attribute('dev')) {
    throw new Error(`/dev/${node} is not the block device of that name`);
  }
  const bytes = Number(attribute('size')) * SECTOR;
  if (bytes !== (size ?? bytes)) throw new Error(`/dev/${node} has ${bytes} bytes and not ${String(size)}`);
}
