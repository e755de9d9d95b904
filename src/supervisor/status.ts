import type { DataPath } from '../../backends/interface.js';
import type { DeviceState } from './machine.js';
import type { PlanEntry } from './reload-plan.js';

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
  /** Of the error that ended a backend in JavaScript. */
  readonly stack: string | null;
  /** ISO 8601, UTC. */
  readonly at: string;
}

/** An error of a backend in JavaScript that names no errno, or a wrong answer: its request failed with EIO. */
export interface BackendErrorStatus {
  readonly queue: number;
  readonly message: string;
  readonly stack: string;
  /** ISO 8601, UTC. */
  readonly at: string;
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
  /** 1 for the first set of queue processes; each recovery adds one. */
  readonly generation: number;
  readonly recoveries: number;
  readonly lastExit: ExitStatus | null;
  readonly lastBackendError: BackendErrorStatus | null;
  /** How long the last recovery or hand-over took, from the exit or the drain to the device being live again, in milliseconds. */
  readonly lastPauseMs: number | null;
  readonly queues: readonly QueueStatus[];
}

export interface Status {
  readonly supervisor: { readonly pid: number; readonly version: string; readonly kernel: string };
  readonly devices: readonly DeviceStatus[];
}

/** What the control API needs from a supervisor. Every promise rejects with a `SupervisorError`. */
export interface SupervisorApi {
  status(): Status;
  /** Resolves when the device is usable. A device that cannot be started is removed again and the promise rejects. */
  add(device: unknown): Promise<DeviceStatus>;
  /**
   * Resolves when the device is gone from the kernel. `force`: also when it is open or mounted.
   * `removeData`: the backend's data goes too (`del`).
   */
  remove(name: string, options: { readonly force: boolean; readonly removeData: boolean }): Promise<void>;
  /** Resolves when the device is live again; also resets the restart limit. */
  recover(name: string): Promise<DeviceStatus>;
  /**
   * Resolves when a new generation serves the device, its users having seen a pause; of a backend in JavaScript with its
   * code as it is now. Code that does not load, or makes another device, is refused and the old goes on.
   */
  restart(name: string): Promise<DeviceStatus>;
  /** Resolves when the device has `size` bytes. `force`: smaller also while it is open or mounted. */
  resize(name: string, options: { readonly size: number; readonly force: boolean }): Promise<DeviceStatus>;
  /** Reads the configuration again and makes the devices those of it; `dryRun` only says how. */
  reload(options: { readonly dryRun: boolean }): Promise<readonly PlanEntry[]>;
  /** Stops every device, then ends the supervisor. Rejects, and stops nothing, when a device is in use and not `force`. */
  stop(options: { readonly force: boolean }): Promise<void>;
}
