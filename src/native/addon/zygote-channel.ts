import { loadAddon, translated } from './load.js';
import { packageRoot } from '../../package-root.js';

/** The preloaded library that turns the node binary into a nursery, and what it forks into zygotes. */
export const zygoteLibrary = `${packageRoot}build/Release/zygote.so`;

export interface SpawnRequest {
  readonly deviceId: number;
  readonly generation: number;
  readonly queues: number;
  readonly depth: number;
  readonly maxIoBytes: number;
  /** One of `dataPathNumber`. */
  readonly dataPath: number;
  /** The backend's files are then a channel for each queue, where they print, and what the shared memory is parked in. */
  readonly javascript: boolean;
  /** The user that the queue processes run as, or `SAME_USER` twice. */
  readonly uid: number;
  readonly gid: number;
  readonly coreDump: boolean;
  readonly size: number;
  readonly backend: string;
}

/** `DataPath` of backend.hpp. */
export const dataPathNumber = { copy: 0, 'user-copy': 1, 'zero-copy': 2 } as const;

/** What a control process does with its command; ControlAction in protocol.hpp. */
export const controlAction = { command: 0, retryWhileBusy: 1, writeBack: 2, claim: 3, whenFetched: 4 } as const;

/** Control commands by their ioctl-encoded number; `Control` in ublk_uapi.hpp. */
export const controlCommand = {
  ADD_DEV: 0xc0207504,
  START_DEV: 0xc0207506,
  STOP_DEV: 0xc0207507,
  SET_PARAMS: 0xc0207508,
  START_USER_RECOVERY: 0xc0207510,
  END_USER_RECOVERY: 0xc0207511,
  DEL_DEV_ASYNC: 0x80207514,
  UPDATE_SIZE: 0xc0207515,
  TRY_STOP_DEV: 0xc0207517,
} as const;

export type ControlCommand = keyof typeof controlCommand;

export interface ControlRequest {
  readonly action: number;
  readonly command: number;
  /** 0xffffffff in ADD_DEV: the kernel chooses. */
  readonly deviceId: number;
  /** How long `retryWhileBusy` goes on. */
  readonly deadlineMs: number;
  /** The command's inline argument, e.g. the pid of START_DEV. */
  readonly data: number;
  /** `whenFetched`: the fd of the device's shared page. */
  readonly sharedPage?: number;
  /** `whenFetched`: the queue processes. */
  readonly pids?: readonly number[];
  readonly device?: {
    readonly id: number;
    readonly queues: number;
    readonly depth: number;
    readonly maxIoBytes: number;
    readonly flags: bigint;
    readonly cookie: bigint;
  };
  readonly parameters?: {
    readonly attributes: number;
    readonly logicalBlockShift: number;
    readonly physicalBlockShift: number;
    readonly maxSectors: number;
    readonly deviceSectors: number;
    readonly discardGranularity: number;
    readonly maxDiscardSectors: number;
    readonly maxWriteZeroesSectors: number;
  };
}

/** `sequence` is that of the request which the message answers, 0 where it answers none. */
export type ZygoteMessage = { readonly sequence: number } & (
  | {
      readonly type: 'hello';
      readonly pid: number;
      /** 0, or the errno with which the nursery could not fork it. */
      readonly error: number;
    }
  | {
      readonly type: 'spawned';
      /** 0, or the errno of `step`. */
      readonly error: number;
      readonly step: string;
      readonly pids: readonly number[];
      /** Owned by the receiver; ProcessWatch takes them over. */
      readonly pidfds: readonly number[];
    }
  | {
      readonly type: 'controlled';
      /** >= 0 or -errno. */
      readonly result: number;
      /** The control process' pid. */
      readonly pid: number;
      /** The rest as ADD_DEV granted it. */
      readonly id: number;
      readonly queues: number;
      readonly depth: number;
      readonly flags: bigint;
    }
  | ({ readonly type: 'exited' } & ProcessEnd)
  | {
      readonly type: 'held';
      /** Control processes of the supervisor that is gone which still run. */
      readonly controls: number;
      /** null: there was none. */
      readonly generation: HeldGeneration | null;
    }
);

/** As its parent learned it; one of `code` and `signal` is null. */
export interface ProcessEnd {
  readonly pid: number;
  readonly code: number | null;
  readonly signal: number | null;
}

/** What a zygote keeps of its device's last generation for a supervisor's successor. The receiver owns the descriptors. */
export interface HeldGeneration {
  readonly deviceId: number;
  readonly generation: number;
  readonly queues: number;
  readonly depth: number;
  readonly sharedPage: number;
  /** The backend's files; of one in JavaScript with them the supervisor's ends of the channels, and of where it prints. */
  readonly files: readonly number[];
  /** By queue. The end of one that is running means nothing. */
  readonly processes: readonly (ProcessEnd & { readonly running: boolean })[];
}

/** The connection to a zygote. Requests return their sequence number; those to a zygote that is gone are never answered. */
export interface ZygoteChannel {
  /** `keptFiles` are for the zygote to keep, and to hand over to a successor of ours. */
  spawn(
    request: SpawnRequest,
    sharedPage: number,
    backendFiles: readonly number[],
    keptFiles: readonly number[],
  ): number;
  control(request: ControlRequest): number;
  cancel(sequence: number): void;
  retire(): void;
  inventory(): number;
  close(): void;
}

interface Addon {
  forkZygote(nursery: number, listener: number, connection: number): void;
  ZygoteChannel: new (fd: number, onMessage: (message: ZygoteMessage) => void, onClose: () => void) => ZygoteChannel;
}

const addon = (): Addon => loadAddon() as Addon;

/** Has the nursery at the other end of `nursery` fork a zygote that listens at `listener` and is connected to us. */
export function forkZygote(nursery: number, listener: number, connection: number): void {
  translated(() => addon().forkZygote(nursery, listener, connection));
}

/** Takes `fd`, a connection to a zygote, over. */
export function openZygoteChannel(
  fd: number,
  onMessage: (message: ZygoteMessage) => void,
  onClose: () => void,
): ZygoteChannel {
  return translated(() => new (addon().ZygoteChannel)(fd, onMessage, onClose));
}
