export interface UblkFeature {
  readonly bit: number;
  readonly name: string;
  /** The first kernel that has it; null: it is newer than this program. */
  readonly since: string | null;
  readonly description: string;
  /** Without it no device can be served. */
  readonly required?: boolean;
}

/** The UBLK_F_ flags of linux/ublk_cmd.h. */
const table = [
  { bit: 0, name: 'SUPPORT_ZERO_COPY', since: '6.15', description: 'I/O without copying through registered buffers' },
  { bit: 1, name: 'URING_CMD_COMP_IN_TASK', since: '6.0', description: 'completions by task work' },
  { bit: 2, name: 'NEED_GET_DATA', since: '6.0', description: 'write data fetched on request' },
  { bit: 3, name: 'USER_RECOVERY', since: '6.1', description: 'devices outlive their server', required: true },
  { bit: 4, name: 'USER_RECOVERY_REISSUE', since: '6.1', description: 'requests are issued again', required: true },
  { bit: 5, name: 'UNPRIVILEGED_DEV', since: '6.3', description: 'devices of ordinary users' },
  { bit: 6, name: 'CMD_IOCTL_ENCODE', since: '6.4', description: 'commands are ioctl numbers', required: true },
  { bit: 7, name: 'USER_COPY', since: '6.5', description: 'data moved by pread and pwrite' },
  { bit: 8, name: 'ZONED', since: '6.6', description: 'zoned devices' },
  { bit: 9, name: 'USER_RECOVERY_FAIL_IO', since: '6.13', description: 'I/O fails while nobody serves' },
  { bit: 10, name: 'UPDATE_SIZE', since: '6.16', description: 'devices can be resized' },
  { bit: 11, name: 'AUTO_BUF_REG', since: '6.16', description: 'buffers are registered by the kernel' },
  { bit: 12, name: 'QUIESCE', since: '6.16', description: 'devices can be quiesced for an upgrade' },
  { bit: 13, name: 'PER_IO_DAEMON', since: '6.16', description: 'each request may have its own server thread' },
  { bit: 14, name: 'BUF_REG_OFF_DAEMON', since: '6.16', description: 'buffers registered by any thread' },
  { bit: 15, name: 'BATCH_IO', since: '7.0', description: 'requests fetched and answered in batches' },
  { bit: 16, name: 'INTEGRITY', since: '7.0', description: 'protection information' },
  { bit: 17, name: 'SAFE_STOP_DEV', since: '7.0', description: 'a device in use refuses to stop' },
  { bit: 18, name: 'NO_AUTO_PART_SCAN', since: '7.0', description: 'no partition scan at start' },
  { bit: 19, name: 'SHMEM_ZC', since: '7.1', description: 'no copying of memory that client and server share' },
  { bit: 20, name: 'IO_DESC_SIZE', since: '7.3', description: 'request descriptors of a chosen size' },
] as const satisfies readonly UblkFeature[];

export const ublkFeatureTable: readonly (UblkFeature & { readonly since: string })[] = table;

/** The UBLK_F_ flag of that name. */
export function featureFlag(name: (typeof table)[number]['name']): bigint {
  const feature = table.find((candidate) => candidate.name === name);
  if (!feature) throw new TypeError(`no ublk feature ${name}`);
  return 1n << BigInt(feature.bit);
}

export function hasFeature(features: bigint, { bit }: UblkFeature): boolean {
  return ((features >> BigInt(bit)) & 1n) === 1n;
}

/** The table, and what this kernel has beyond it. */
export function featuresWith(offered: bigint): readonly UblkFeature[] {
  const newer = Array.from({ length: 64 - table.length }, (_none, index): UblkFeature => {
    const bit = table.length + index;
    return { bit, name: `bit ${bit}`, since: null, description: 'newer than this program' };
  });
  return [...table, ...newer.filter((feature) => hasFeature(offered, feature))];
}

/** What the kernel has to have for a data path. */
export const dataPathFeature = { copy: null, 'user-copy': 'USER_COPY', 'zero-copy': 'AUTO_BUF_REG' } as const;
