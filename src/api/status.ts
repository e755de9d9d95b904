import type { Choice, DataPath } from '../../backends/interface.js';
import type { FaultRule } from '../faults/rule.js';

export type DeviceState =
  | 'adopting'
  | 'adding'
  | 'starting'
  | 'live'
  | 'draining'
  | 'handingOver'
  | 'recovering'
  | 'degraded'
  | 'failed'
  | 'stopping'
  | 'gone';

export type OperationName = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';

/** Counters of one kind of operation on one queue; latencies are from a log-scale histogram, within 13 %. */
export interface OperationStatus {
  readonly count: number;
  readonly bytes: number;
  readonly errors: number;
  readonly p50us: number;
  readonly p99us: number;
}

export interface QueueStatus {
  readonly index: number;
  /** null while the queue has no process. */
  readonly pid: number | null;
  readonly depth: number;
  readonly inflight: number;
  readonly read: OperationStatus;
  readonly write: OperationStatus;
  readonly flush: OperationStatus;
  readonly discard: OperationStatus;
  readonly writeZeroes: OperationStatus;
}

/** How a queue process ended: `signal` or `code`, and what it said itself where it could. */
export interface ExitStatus {
  readonly queue: number;
  readonly pid: number;
  readonly code: number | null;
  readonly signal: string | null;
  /** Why the process gave up by itself, e.g. `setting up io_uring failed: Cannot allocate memory (ENOMEM)`. */
  readonly reason: string | null;
  /** Of the error that ended a backend in JavaScript, or of what it was computing when it was ended. */
  readonly stack: string | null;
  /** ISO 8601, UTC. */
  readonly at: string;
}

/** An error of a backend in JavaScript that names no errno, or a wrong answer: its request failed with EIO. */
export interface BackendErrorStatus {
  readonly queue: number;
  readonly request: RequestStatus;
  readonly message: string;
  readonly stack: string;
  /** ISO 8601, UTC. */
  readonly at: string;
}

export interface RequestStatus {
  /** `read`, `write`, `flush`, `discard` or `writeZeroes`. */
  readonly operation: string;
  /** Where it begins, in sectors of 512 bytes. */
  readonly sector: number;
  readonly sectors: number;
}

export interface QuarantinedRequestStatus extends RequestStatus {
  /** How many it caused. */
  readonly crashes: number;
}

/** A request that a generation had not answered when it died. */
export interface OutstandingRequestStatus extends RequestStatus {
  readonly queue: number;
  /** At the death. */
  readonly ageMs: number;
}

/**
 * Why a generation died. `hang`: we ended it. `killed`: by a SIGKILL that we did not send. `error`: the process said what
 * (`exit.reason`). `exit`: it did not. `unknown`: its parent, the zygote, is gone too.
 */
export type CrashCause = 'hang' | 'killed' | 'signal' | 'error' | 'exit' | 'unknown';

/** How far a generation's queue processes came. `fetching`: some, not all, of the device's FETCHes may be with the kernel. */
export type GenerationPhase = 'preparing' | 'fetching' | 'fetched';

/** The death of a generation that the supervisor did not end. */
export interface CrashStatus {
  readonly device: string;
  readonly backend: string;
  readonly generation: number;
  readonly cause: CrashCause;
  /** How the first of its processes ended. */
  readonly exit: ExitStatus;
  readonly phase: GenerationPhase;
  /** How many requests it had not answered. */
  readonly inflight: number;
  /** The oldest of them, at most 32. */
  readonly requests: readonly OutstandingRequestStatus[];
  /** How many requests it had answered, by operation. */
  readonly answered: Readonly<Record<OperationName, number>>;
  /** How long before its death it answered last; null: never. */
  readonly lastAnswerMs: number | null;
  /** Requests that are answered with EIO from this death on. */
  readonly quarantined: readonly QuarantinedRequestStatus[];
  /** How often the OOM killer struck in the supervisor's cgroup since the last crash; null: the kernel does not say. */
  readonly oomKills: number | null;
  /** How long the device's users had to wait; null while it is not live again, or if it died again before. */
  readonly pauseMs: number | null;
  /** Path of the report; null: there is none. */
  readonly file: string | null;
}

/** A fault rule as it was written, and what came of it. */
export interface FaultRuleStatus extends FaultRule {
  /** What it waits for, such as a file, is there. */
  readonly active: boolean;
  /** How many requests were those that it is for. */
  readonly matches: number;
  /** How many of them it changed. */
  readonly hits: number;
}

/** One hit of a fault rule. */
export interface FaultHitStatus {
  /** From 1, over all rules of the device. */
  readonly number: number;
  /** ISO 8601, UTC. */
  readonly at: string;
  /** null: there is no rule in its place any more. */
  readonly rule: string | null;
  /** Which of the requests that the rule is for it was, from 0. */
  readonly match: number;
  readonly operation: string;
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
}

export interface DeviceStatus {
  readonly name: string;
  /** null until the kernel gave one, and after the device is gone. */
  readonly id: number | null;
  readonly path: string | null;
  readonly state: DeviceState;
  /** Why the device is in a state that needs explaining (degraded, failed, a refused stop), in one line. */
  readonly reason: string | null;
  readonly backend: string;
  readonly size: number;
  readonly blockSize: number;
  readonly dataPath: DataPath;
  /** What the configuration left open, and why it is so. */
  readonly choices: readonly Choice[];
  /** 1 for the first set of queue processes; each recovery adds one. */
  readonly generation: number;
  readonly recoveries: number;
  readonly lastExit: ExitStatus | null;
  readonly lastCrash: CrashStatus | null;
  /** Requests that are answered with EIO, because each crashed the backend again and again. */
  readonly quarantine: readonly QuarantinedRequestStatus[];
  readonly lastBackendError: BackendErrorStatus | null;
  /** Its fault rules; null: its configuration allows none. */
  readonly faults: readonly FaultRuleStatus[] | null;
  /** How long the last recovery or hand-over took, from the exit or the drain to the device being live again, in milliseconds. */
  readonly lastPauseMs: number | null;
  readonly queues: readonly QueueStatus[];
}

export interface SupervisorStatus {
  readonly pid: number;
  readonly version: string;
  readonly kernel: string;
}

export interface Status {
  readonly supervisor: SupervisorStatus;
  readonly devices: readonly DeviceStatus[];
}

/**
 * What a state says of /dev/ublkbN. `usable`: requests are answered. `kept`: it is there and requests may wait. `absent`: it
 * is not there, or is about to go.
 */
export type BlockDeviceUse = 'usable' | 'kept' | 'absent';

/** What is told of a device after each change of its state. */
export interface DeviceChange extends Pick<DeviceStatus, 'name' | 'id' | 'state' | 'size'> {
  readonly blockDevice: BlockDeviceUse;
}

/** What a reload does, or would do, to one device. */
export interface PlanEntry {
  readonly device: string;
  readonly action: 'add' | 'remove' | 'change' | 'keep' | 'refuse';
  /** What is different, as the configuration calls it: `recovery.window`. */
  readonly changes: readonly string[];
  /** Why it is refused, in one line. */
  readonly reason: string | null;
}

/** What the control API needs from a supervisor. Every promise rejects with a `SupervisorError`. */
export interface SupervisorApi {
  /** All at once. Whoever must not hold the event loop up takes the two parts of it, and his time for the second. */
  status(): Status;
  supervisorStatus(): SupervisorStatus;
  /** Of each device as it is when its turn comes; one that is gone by then is left out. */
  deviceStatuses(): Iterable<DeviceStatus>;
  /** null: there is no device of that name. */
  deviceStatus(name: string): DeviceStatus | null;
  /** Resolves when the device is usable. A device that cannot be started is removed again and the promise rejects. */
  add(device: unknown): Promise<DeviceStatus>;
  /**
   * Resolves when the device is gone from the kernel. `force`: also when it is open or mounted.
   * `removeData`: the backend's data goes too (`del`).
   */
  remove(name: string, options: { readonly force: boolean; readonly removeData: boolean }): Promise<void>;
  /** Resolves when the device is live again; also resets the restart limit. `clearQuarantine`: nothing is refused any more. */
  recover(name: string, options?: { readonly clearQuarantine?: boolean }): Promise<DeviceStatus>;
  /**
   * Resolves when a new generation serves the device, its users having seen a pause; of a backend in JavaScript with its
   * code as it is now. Code that does not load, or makes another device, is refused and the old goes on.
   */
  restart(name: string): Promise<DeviceStatus>;
  /** Resolves when the device has `size` bytes. `force`: smaller also while it is open or mounted. */
  resize(name: string, options: { readonly size: number; readonly force: boolean }): Promise<DeviceStatus>;
  /** Resolves with the paths of the device's partitions when they are those of the table that is on it now. */
  lookForPartitions(name: string): Promise<readonly string[]>;
  /** Adds a fault rule, which counts from then on; returns its id. Rejects with `REFUSED` where the configuration allows none. */
  addFault(name: string, rule: unknown): string;
  /** In the order in which they are tried. */
  faults(name: string): readonly FaultRuleStatus[];
  /** Removes one rule, or all of them; requests that it holds up go on. */
  removeFault(name: string, id: string | null): void;
  /** The hits after number `after`, as far as they are still known: the last 4096 of a device are. */
  faultLog(name: string, after: number): readonly FaultHitStatus[];
  /** Reads the configuration again and makes the devices those of it; `dryRun` only says how. */
  reload(options: { readonly dryRun: boolean }): Promise<readonly PlanEntry[]>;
  /**
   * Hands every device over to queue processes of the native code that is installed now, one device after the other. The
   * first that cannot be ends it: that device and those after it are served as before.
   */
  upgrade(): Promise<void>;
  /** Resolves when the supervisor is about to go on as the program that is installed now; its devices are served on. */
  upgradeSelf(): Promise<void>;
  /** Stops every device, then ends the supervisor. Rejects, and stops nothing, when a device is in use and not `force`. */
  stop(options: { readonly force: boolean }): Promise<void>;
}
