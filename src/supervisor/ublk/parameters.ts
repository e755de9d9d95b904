import { dataPathFeature, featureFlag } from '../host/ublk-features.js';
import type { ControlRequest } from '../../native/addon/zygote-channel.js';
import type { DeviceSpec } from './kernel.js';

/** What a spec comes to in ADD_DEV and SET_PARAMS. */

export const SECTOR = 512;

/** The most that one discard or write zeroes covers: a store that has to write the zeros needs a second or two for that on a slow disk. */
const MAX_DISCARD_SECTORS = (64 << 20) / SECTOR;

/** `UBLK_ATTR_*` of linux/ublk_cmd.h. */
const Attribute = { readOnly: 1, rotational: 2, volatileCache: 4, fua: 8 } as const;

/** The `UBLK_F_*` that the device needs, of those that the kernel has. */
export function flagsOf(spec: DeviceSpec, features: bigint): bigint {
  let flags = featureFlag('CMD_IOCTL_ENCODE') | featureFlag('USER_RECOVERY');
  if (spec.recovery === 'reissue') flags |= featureFlag('USER_RECOVERY_REISSUE');
  if (spec.recovery === 'fail-io') flags |= featureFlag('USER_RECOVERY_FAIL_IO');
  const dataPath = dataPathFeature[spec.dataPath];
  if (dataPath !== null) flags |= featureFlag(dataPath);
  return flags | (features & featureFlag('NO_AUTO_PART_SCAN'));
}

export function parametersOf(spec: DeviceSpec): NonNullable<ControlRequest['parameters']> {
  const { facts } = spec;
  const physicalBlock = Math.max(spec.blockSize, 4096);
  return {
    attributes:
      (facts.readOnly ? Attribute.readOnly : 0) |
      (facts.rotational ? Attribute.rotational : 0) |
      (facts.volatileCache ? Attribute.volatileCache : 0) |
      (facts.fua ? Attribute.fua : 0),
    logicalBlockShift: Math.log2(spec.blockSize),
    physicalBlockShift: Math.log2(physicalBlock),
    maxSectors: maxIoBytes(spec) / SECTOR,
    deviceSectors: spec.size / SECTOR,
    discardGranularity: physicalBlock,
    maxDiscardSectors: facts.discard ? MAX_DISCARD_SECTORS : 0,
    maxWriteZeroesSectors: facts.writeZeroes ? MAX_DISCARD_SECTORS : 0,
  };
}

/** Buffers of the copy path are per tag and locked, so its requests are kept shorter. */
export function maxIoBytes(spec: DeviceSpec): number {
  return spec.dataPath === 'copy' ? 2 ** 18 : 2 ** 20;
}
