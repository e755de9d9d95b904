import type { Host } from './host.js';

export const DEVICE_LIMIT = '/sys/module/ublk_drv/parameters/ublks_max';

/**
 * By stable series, the release from which on the limit is for devices that are made without privileges, as it is from 6.15
 * on ("ublk: enforce ublks_max only for unprivileged devices").
 */
const UNLIMITED_STABLE: Readonly<Record<string, number>> = { '6.14': 9, '6.12': 31, '6.6': 93, '6.1': 141 };

/** How many ublk devices the kernel takes in all; null: any number. */
export function deviceLimit({ release, readText }: Pick<Host, 'release' | 'readText'>): number | null {
  const [major = 0, minor = 0, patch = 0] = release.split('.').map((part) => parseInt(part));
  if (major > 6 || (major === 6 && minor >= 15)) return null;
  if (patch >= (UNLIMITED_STABLE[`${major}.${minor}`] ?? Infinity)) return null;
  const limit = parseInt(readText(DEVICE_LIMIT) ?? '');
  return Number.isNaN(limit) ? null : limit;
}

/** What is wrong with the limit for so many devices, in one line; null: nothing. */
export function deviceShortage(devices: number, limit: number | null): string | null {
  if (limit === null || devices <= limit) return null;
  return `${devices} devices are configured, and this kernel takes ${limit}; ${raiseTo(devices)}`;
}

/** What to do where more are needed. */
export const raiseTo = (devices: number): string => `run: echo ${devices} > ${DEVICE_LIMIT}`;
