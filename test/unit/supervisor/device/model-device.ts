import type { KernelQuirks } from '../../../../src/supervisor/ublk/kernel.js';
import type { ModelGeneration } from './model-generation.js';

export const kernelVersions = ['6.12', '6.16', '7.2'] as const;
export type KernelVersion = (typeof kernelVersions)[number];

export interface Behaviour {
  readonly quirks: KernelQuirks;
  /** One dead queue process quiesces the device; else it stays LIVE until all are gone. */
  readonly oneDeathQuiesces: boolean;
  /** There is TRY_STOP_DEV, which refuses while the block device is open. */
  readonly safeStop: boolean;
  /** There is AUTO_BUF_REG. */
  readonly zeroCopy: boolean;
  /** There is UPDATE_SIZE. */
  readonly resizes: boolean;
}

/** docs: reliability.md 1.3 and 1.5. */
export const behaviours: Readonly<Record<KernelVersion, Behaviour>> = {
  '6.12': {
    quirks: {
      midFetchDeathIsFatal: true,
      recoveryBeginsOnce: true,
      deathNoticedByTimeout: true,
      lastFetchForgetsCancelled: false,
    },
    oneDeathQuiesces: true,
    safeStop: false,
    zeroCopy: false,
    resizes: false,
  },
  '6.16': {
    quirks: {
      midFetchDeathIsFatal: true,
      recoveryBeginsOnce: false,
      deathNoticedByTimeout: false,
      lastFetchForgetsCancelled: true,
    },
    oneDeathQuiesces: false,
    safeStop: false,
    zeroCopy: true,
    resizes: true,
  },
  '7.2': {
    quirks: {
      midFetchDeathIsFatal: false,
      recoveryBeginsOnce: false,
      deathNoticedByTimeout: false,
      lastFetchForgetsCancelled: false,
    },
    oneDeathQuiesces: false,
    safeStop: true,
    zeroCopy: true,
    resizes: true,
  },
};

export interface ModelDevice {
  readonly id: number;
  readonly name: string;
  /** Which forked its last generation. */
  nursery: number | null;
  state: 'DEAD' | 'LIVE' | 'QUIESCED';
  size: number;
  /** Bytes that its last generation serves. */
  serves: number;
  /** Somebody has the block device open. */
  open: boolean;
  /** Its queue processes do not answer. */
  hung: boolean;
  wasStarted: boolean;
  stopped: boolean;
  /** A generation died before START_DEV: the kernel never lets another one map the device. */
  burnt: boolean;
  recoveryBegun: boolean;
  /** A replacement died between its first and its last FETCH. */
  diedFetching: boolean;
  /** A second supervisor has it. */
  adopted: boolean;
  generations: ModelGeneration[];
}

export function newDevice(id: number, name: string): ModelDevice {
  return {
    id,
    name,
    nursery: null,
    state: 'DEAD',
    size: 0,
    serves: 0,
    open: false,
    hung: false,
    wasStarted: false,
    stopped: false,
    burnt: false,
    recoveryBegun: false,
    diedFetching: false,
    adopted: false,
    generations: [],
  };
}

export function alive(device: ModelDevice): number {
  return device.generations.reduce((sum, generation) => sum + generation.alive.size, 0);
}
