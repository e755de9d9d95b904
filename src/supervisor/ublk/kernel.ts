import type { BackendFacts, BackendModule, Choice, DataPath } from '../../../backends/interface.js';
import type { DeviceConfig, RecoveryMode } from '../../config/types.js';
import type { CompiledFault, FaultChange, FaultHit, FaultInSlot } from '../../native/addon/fault-area.js';
import type { MarkedRequest } from '../../native/addon/shared-pages.js';
import type { RequestIdentity } from '../../native/request.js';
import type { BackendReport } from '../../channel/message-schema.js';
import type { ExitStatus, GenerationPhase, OperationName, QueueStatus } from '../../api/status.js';
import type { HeldByZygote } from '../zygote/zygote.js';

/** What a device is made and served with just as it is configured. */
type AsConfigured = Pick<DeviceConfig, 'name' | 'id' | 'queues' | 'depth' | 'requestTimeoutMs' | 'user' | 'coreDump'>;

/** Everything about a device that the kernel and the queue processes need, fixed for the device's life. */
export interface DeviceSpec extends AsConfigured {
  readonly blockSize: number;
  readonly size: number;
  readonly dataPath: DataPath;
  /** What its configuration left open. */
  readonly choices: readonly Choice[];
  readonly recovery: RecoveryMode;
  /** The nursery that forks the device's zygote, and so the native code that serves it. If that nursery is closed, the present one does. */
  readonly nursery: number;
  readonly facts: BackendFacts;
  readonly backend: {
    readonly name: string;
    readonly files: readonly number[];
    /** null: the backend is native. */
    readonly module: BackendModule | null;
  };
}

/** What ADD_DEV granted: the kernel chooses the id where none was asked for and clamps the queues to the CPUs. */
export interface GrantedDevice {
  readonly id: number;
  readonly queues: number;
  readonly depth: number;
}

/** A device that an earlier supervisor made and the kernel still has. */
export interface FoundDevice extends GrantedDevice {
  readonly state: KernelDeviceState;
  readonly dataPath: DataPath;
  /** Bytes; null: it has no block device. */
  readonly size: number | null;
  /** Bytes; null: it has no block device. */
  readonly blockSize: number | null;
  /** Its last generation, where there still is the zygote that forked it. */
  readonly held: HeldByZygote | null;
}

/** `DEAD`: not started, or stopped. `QUIESCED`: its server is gone; also where new requests fail meanwhile. */
export type KernelDeviceState = 'DEAD' | 'LIVE' | 'QUIESCED';

/** A fault rule in its place in the shared page. */
export interface FaultSlot {
  readonly slot: number;
  readonly rule: CompiledFault;
}

/** What the queues of a generation do with requests besides giving them to the backend. */
export interface RequestRules {
  /** Requests that are treated with care after crashes. */
  readonly marked: readonly MarkedRequest[];
  /** null: the device may have no fault rules. */
  readonly faults: readonly FaultSlot[] | null;
}

/** The generation that serves a device of an earlier supervisor. */
export interface Adopted {
  readonly generation: Generation;
  /** The marks that the generation was given and that still count. */
  readonly marked: readonly MarkedRequest[];
  /** The fault rules that it has. */
  readonly faults: readonly FaultInSlot[];
}

/** `queue` null: of one of them. */
export type QueueReport =
  | { readonly queue: number; readonly report: BackendReport }
  | { readonly queue: null; readonly report: Extract<BackendReport, { type: 'log' }> };

export interface OutstandingRequest extends RequestIdentity {
  readonly queue: number;
  readonly ageMs: number;
}

/** What a hang says against requests; as a rule nothing, as it may be the store that does not answer. */
export interface HangEvidence {
  /** The only request that was not answered in time, where later ones of its kind were. */
  readonly overtaken: RequestIdentity | null;
}

/** What a dead generation left in the shared page. */
export interface Remains {
  /** Its queues whose process ended by itself, or hung; the others were ended with it. */
  readonly died: readonly number[];
  /** null: it was not ended because it hung. */
  readonly hung: HangEvidence | null;
  readonly phase: GenerationPhase;
  /** What its backends had not answered; ages at the death. */
  readonly outstanding: readonly OutstandingRequest[];
  /** Marked requests that it has not answered, whether its backends got them or not. */
  readonly marked: readonly MarkedRequest[];
  /** How many requests it answered. */
  readonly answered: Readonly<Record<OperationName, number>>;
  /** How long before its death; null: never. */
  readonly lastAnswerMs: number | null;
}

/** One set of queue processes, one per hardware queue, forked together and ended together. */
export interface Generation {
  readonly number: number;
  /** By queue index. */
  readonly pids: readonly number[];
  /** Aborted, with an ExitStatus as reason, when the first of the processes has exited. */
  readonly exited: AbortSignal;
  /** Resolves when every process is gone. */
  readonly allExited: Promise<void>;
  /** What has been waited for longer than the request time-out, though new processes could do no better; null: nothing. */
  readonly stalled: string | null;
  /** Read from the shared page, so it is valid after the processes are dead. */
  phase(): GenerationPhase;
  /** To be called once the processes are dead and before there are others. */
  remains(): Remains;
  /**
   * Asks every process to finish what its backend has, to take nothing new and to exit; resolves when all have, or when
   * `deadlineMs` has passed. Their exits are not reported.
   */
  drain(deadlineMs: number): Promise<void>;
  /** SIGKILL to every process that is left; resolves when all have exited. Rejects after a deadline (uninterruptible sleep). */
  kill(): Promise<void>;
}

/** What differs between kernels; resolved once from the features and the release. */
export interface KernelQuirks {
  /** A device whose replacement died between its first and its last FETCH can never be recovered (6.12 to 6.19). */
  readonly midFetchDeathIsFatal: boolean;
  /** START_USER_RECOVERY is refused with EINVAL when an earlier one succeeded and no process fetched since (6.12). */
  readonly recoveryBeginsOnce: boolean;
  /** A dead server with every command in flight is only noticed by the block layer's time-out (6.14 and before). */
  readonly deathNoticedByTimeout: boolean;
  /**
   * The last FETCH of a first start makes the kernel forget which commands it cancelled before, so that DEL_DEV oopses (6.16
   * to 6.19).
   */
  readonly lastFetchForgetsCancelled: boolean;
}

/** What a claim keeps users away for. */
export type ClaimedFor = 'stopping' | 'shrinking';

/** While it lasts the kernel refuses to mount the devices, to swap on them, and to make other devices of them. */
export interface Claim {
  /** To be called in any case; once is enough. */
  release(): Promise<void>;
}

export interface StopOptions {
  /** Stop the device even while it is in use. */
  readonly force: boolean;
  /** Fires when a queue process exits; null: no generation serves, so nothing can be written back. */
  readonly served: AbortSignal | null;
}

/**
 * The kernel as the device state machine sees it. Every operation has a deadline and rejects with a `SupervisorError`
 * whose `code` is the errno's name (`EBUSY`), or `TIMEOUT`, or `ABORTED` when `signal` fired.
 * Operations are named after the ublk control commands that they send (Documentation/block/ublk.rst).
 */
export interface Kernel {
  readonly quirks: KernelQuirks;
  /** That nursery if there is one of that number, else the one that forks what is new. */
  nursery(wanted: number | null): number;
  offers(dataPath: DataPath): boolean;
  /** The cookie by which the kernel knows a device of that name; a few names share one. */
  cookieOf(name: string): bigint;
  /** There is UPDATE_SIZE. */
  readonly resizes: boolean;
  /** ADD_DEV, then compares the granted flags. A device that lacks a flag we need is deleted again. */
  addDevice(spec: DeviceSpec): Promise<GrantedDevice>;
  /** SET_PARAMS. */
  setParameters(id: number, spec: DeviceSpec): Promise<void>;
  /**
   * Opens and maps /dev/ublkcN in the zygote and forks the queue processes; resolves once they exist. `onReport`: what
   * backends in JavaScript say from then on. `firstStart`: it is for `startDevice`, not `endRecovery`. A device that had a
   * generation before keeps its fault rules as they are, with their counters.
   */
  spawn(
    granted: GrantedDevice,
    spec: DeviceSpec,
    generation: number,
    onReport: (report: QueueReport) => void,
    rules: RequestRules,
    firstStart: boolean,
  ): Promise<Generation>;
  /** The device's queues forget what was marked, at once. */
  unmark(id: number): void;
  /** Gives a slot a fault rule, or frees it; the queues go by it at once. `kept`: its counters go on. */
  setFault(id: number, slot: number, rule: FaultChange | null): void;
  /** The counters of the device's fault rules. */
  faults(id: number): readonly FaultInSlot[];
  faultLog(id: number, after: number): readonly FaultHit[];
  /** Takes over the processes that serve a device of an earlier supervisor; null: no zygote knows of any. */
  adopt(found: FoundDevice, spec: DeviceSpec, onReport: (report: QueueReport) => void): Adopted | null;
  /** As the kernel has it now. */
  stateOf(id: number): KernelDeviceState;
  /**
   * START_DEV, which makes /dev/ublkbN, once every FETCH is in. Not sent while a queue process is dead, or about to be,
   * so `signal` has to cancel then.
   */
  startDevice(granted: GrantedDevice, signal: AbortSignal): Promise<void>;
  /** START_USER_RECOVERY, retried while the kernel still holds references of the dead generation (EBUSY). */
  beginRecovery(id: number): Promise<void>;
  /** END_USER_RECOVERY, likewise. */
  endRecovery(granted: GrantedDevice, signal: AbortSignal): Promise<void>;
  /** UPDATE_SIZE, which checks nothing: `bytes` has to be a size that the device can have. Only after START_DEV. */
  updateSize(id: number, bytes: number): Promise<void>;
  /**
   * Claims the block devices, all or none, of devices that were started. Rejects with `IN_USE` and who the users are while
   * anybody uses one of them, or a partition of it. Claims of the same device share.
   */
  claim(ids: readonly number[], purpose: ClaimedFor): Promise<Claim>;
  /**
   * Writes the block device's dirty pages back where it is served, then STOP_DEV (TRY_STOP_DEV where there is one and
   * not `force`). Without `force` it is claimed up to there, and refused as in `claim`. Rejects with `WRITE_BACK`, nothing stopped, when the pages could not be written in time.
   */
  stopDevice(id: number, options: StopOptions): Promise<void>;
  /**
   * DEL_DEV_ASYNC, then waits until the id is free, or is another device's. Resolves false when the id stays taken because
   * the block device is still open: it goes when its last user closes it.
   */
  deleteDevice(id: number): Promise<boolean>;
  /** Counters of the device's queues, which outlive generations; see `QueueStatus`. */
  queueStatus(granted: GrantedDevice, generation: Generation | null): QueueStatus[];
  /**
   * Lets go of the shared page and whatever else is kept for the device's life; resolves when the backend's files are free.
   * Its id may be another device's by then.
   */
  release(granted: GrantedDevice): Promise<void>;
}

/** The end of a generation: its first exit, and what is left of it. */
export interface Death {
  readonly generation: number;
  readonly exit: ExitStatus;
  readonly remains: Remains;
}
