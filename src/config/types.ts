import type { BackendOptions } from '../../backends/registry.js';
import type { DataPath } from '../../backends/interface.js';
import type { WrittenFaultRule } from '../faults/rule.js';
import type { User } from '../native/addon/accounts.js';

export type { User };

/**
 * `reissue`: outstanding requests are issued again to the next generation; the device's users see no error.
 * `fail-inflight`: outstanding requests fail with EIO, new ones wait. `fail-io`: both fail until recovered (kernel 6.13).
 */
export type RecoveryMode = 'reissue' | 'fail-inflight' | 'fail-io';

/** What happens to a device whose restarts exceed the limit: keep its I/O waiting, or remove it so that I/O fails. */
export type GiveUp = 'park' | 'stop';

export interface RecoveryConfig {
  readonly mode: RecoveryMode;
  /** false leaves a device whose queue process died to `ublk-supervisor recover`. */
  readonly auto: boolean;
  /** At most this many restarts within `windowMs`. 0: never restart. */
  readonly maxRestarts: number;
  readonly windowMs: number;
  /** A request that was in the backend in so many consecutive crashes is answered with EIO. 0: none ever is. */
  readonly poisonAfter: number;
  readonly onGiveUp: GiveUp;
}

/** A device as the configuration file or `add` describes it, with all defaults applied and units resolved. */
export interface DeviceConfig {
  readonly name: string;
  /** N of /dev/ublkbN; undefined lets the kernel choose. */
  readonly id: number | undefined;
  readonly queues: number;
  readonly depth: number;
  /** Logical block size in bytes; undefined: the one that suits the data. */
  readonly blockSize: number | undefined;
  readonly readOnly: boolean;
  readonly dataPath: DataPath | 'auto';
  /** Its partitions are devices, too. */
  readonly partitions: boolean;
  /** Queue processes that give no sign of life for so long are replaced. */
  readonly requestTimeoutMs: number;
  /** The user that the queue processes run as; undefined: the supervisor's, without its capabilities. */
  readonly user: User | undefined;
  /** A crash of a queue process may leave a core dump. */
  readonly coreDump: boolean;
  readonly backend: BackendOptions;
  readonly recovery: RecoveryConfig;
  /** undefined: it may have none. */
  readonly faults: readonly WrittenFaultRule[] | undefined;
}

export interface Config {
  readonly devices: readonly DeviceConfig[];
}
