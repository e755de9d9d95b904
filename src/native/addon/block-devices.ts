import { loadAddon } from './load.js';

/** Devices as `major:minor`. */
export interface OpenBlockDevices {
  readonly openers: readonly { readonly pid: number; readonly device: string }[];
  readonly loops: readonly LoopDevice[];
}

export interface LoopDevice {
  readonly name: string;
  /** As the kernel names it, maybe seen from another root directory. */
  readonly backingFile: string;
  /** Empty: not known to be on a block device. */
  readonly device: string;
}

interface Addon {
  openBlockDevices(): Promise<OpenBlockDevices>;
}

const addon = (): Addon => loadAddon() as Addon;

/** Which process has which block device open; mounts are not among that. Runs in a thread of its own, and asks no file system. */
export function openBlockDevices(): Promise<OpenBlockDevices> {
  return addon().openBlockDevices();
}
