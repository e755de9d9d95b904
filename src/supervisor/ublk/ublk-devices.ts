import { readdir, readFile } from 'node:fs/promises';
import { constants } from 'node:os';
import type { DataPath } from '../../../backends/interface.js';
import { errnoOf } from '../../errors.js';
import { ublkDeviceInfo, type UblkDeviceInfo } from '../../native/addon/system.js';
import type { KernelDeviceState } from './kernel.js';
import { dataPathFeature, featureFlag } from '../host/ublk-features.js';

const { ENOENT } = constants.errno;

export interface UblkDevice extends UblkDeviceInfo {
  readonly id: number;
}

/** Every ublk device of this machine, those of other programs included. */
export async function devicesInKernel(): Promise<readonly UblkDevice[]> {
  const names = (await unlessMissing(readdir('/sys/class/ublk-char'))) ?? [];
  return names.flatMap((name) => {
    const id = Number(/^ublkc(\d+)$/.exec(name)?.[1] ?? NaN);
    const info = Number.isNaN(id) ? null : ublkDeviceInfo(id);
    return info === null ? [] : [{ ...info, id }];
  });
}

/** UBLK_S_DEV_* of linux/ublk_cmd.h; a device that is gone by now is dead. */
export function stateOf(info: Pick<UblkDeviceInfo, 'state'> | null): KernelDeviceState {
  if (info === null || info.state === 0) return 'DEAD';
  return info.state === 1 ? 'LIVE' : 'QUIESCED';
}

/** As chosen when the device was added. */
export function dataPathOf({ flags }: Pick<UblkDeviceInfo, 'flags'>): DataPath {
  const paths = ['zero-copy', 'user-copy'] as const;
  return paths.find((path) => (flags & featureFlag(dataPathFeature[path])) !== 0n) ?? 'copy';
}

/** Bytes of /dev/ublkbN; null where there is none. */
export async function sizeOf(id: number): Promise<number | null> {
  const sectors = await unlessMissing(readFile(`/sys/block/ublkb${id}/size`, 'utf8'));
  return sectors === null ? null : Number(sectors) * 512;
}

/** Logical block size of /dev/ublkbN in bytes; null where there is none. */
export async function logicalBlockSizeOf(id: number): Promise<number | null> {
  const size = await unlessMissing(readFile(`/sys/block/ublkb${id}/queue/logical_block_size`, 'utf8'));
  return size === null ? null : Number(size);
}

/** null: there is none. That it cannot be read is another matter. */
async function unlessMissing<Result>(reading: Promise<Result>): Promise<Result | null> {
  return reading.catch((error: unknown) => {
    if (errnoOf(error) === ENOENT) return null;
    throw error;
  });
}
