import type { Host } from './host.js';

export const DEVICE_LIMIT = '/sys/module/ublk_drv/parameters/ublks_max';

/** How many ublk devices the kernel takes in all; null: any number. From 6.15 on the parameter is for devices that are made without privileges. */
export function deviceLimit({ release, readText }: Pick<Host, 'release' | 'readText'>): number | null {
  const [major = 0, minor = 0] = release.split('.').map((part) => parseInt(part));
  if (major > 6 || (major === 6 && minor >= 15)) return null;
  const limit = parseInt(readText(DEVICE_LIMIT) ?? '');
  return Number.isNaN(limit) ? null : limit;
}

/** What is wrong with the limit for so many devices, in one line; null: nothing. */
export function deviceShortage(devices: number, limit: number | null): string | null {
  if (limit === null || devices <= limit) return null;
  return `${String(devices)} devices are configured, and this kernel takes ${String(limit)}; ${raiseTo(devices)}`;
}

/** What to do where more are needed. */
export const raiseTo = (devices: number): string => `run: echo ${String(devices)} > ${DEVICE_LIMIT}`;
