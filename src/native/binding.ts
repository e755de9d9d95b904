import { createRequire } from 'node:module';
import { getSystemErrorName } from 'node:util';
import { SupervisorError, errnoOf, messageOf } from '../errors.js';
import { packageRoot } from '../package-root.js';

/** The compiled addon, typed. Its C++ side is src/native/addon/. */

/** The preloaded library that turns the node binary into a nursery, and what it forks into zygotes. */
export const zygoteLibrary = `${packageRoot}build/Release/zygote.so`;

/** GET_DEV_INFO's answer about any ublk device of this machine; `struct ublksrv_ctrl_dev_info`. */
export interface UblkDeviceInfo {
  /** 0 DEAD, 1 LIVE, 2 QUIESCED, 3 FAIL_IO. LIVE is no proof of life. */
  readonly state: number;
  readonly ownerPid: number;
  readonly flags: bigint;
  /** `ublksrv_flags`: 64 bits that the driver keeps for the server. */
  readonly cookie: bigint;
  readonly queues: number;
  readonly depth: number;
}

/** A user and the one group that goes with it. */
export interface User {
  readonly uid: number;
  readonly gid: number;
}

/** The process at the other end of a connection. */
export interface Peer {
  readonly uid: number;
  /** It has CAP_SYS_ADMIN, and not only in a user namespace of its own; or this process lacks it too. */
  readonly administrates: boolean;
}

/** In place of a uid and a gid: the process goes on as who it is; `kSameUser` of user.hpp. */
export const SAME_USER = 0xffffffff;

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
  /** Whom the queue processes run as, or `SAME_USER` twice. */
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
      /** Of the control process. */
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

/** Messages with open files between two processes. */
export interface MessageChannel {
  /** The caller keeps its descriptors. That the other side is gone shows as its end alone. */
  send(bytes: Uint8Array, fds: readonly number[]): void;
  close(): void;
}

/** Watches one process by pidfd. */
export interface CloseWatch {
  /** No call comes any more. */
  end(): void;
}

export interface ProcessWatch {
  /** SIGKILL; harmless when the process is gone. */
  kill(): void;
}

export interface SharedOperation {
  readonly count: number;
  readonly bytes: number;
  readonly errors: number;
  readonly p50ns: number;
  readonly p99ns: number;
}

/** `Phase` of shared_page.hpp. */
export const QueuePhase = { absent: 0, preparing: 1, fetching: 2, fetched: 3, released: 4 } as const;

export interface SharedQueue {
  /** One of `QueuePhase`. */
  readonly phase: number;
  readonly inflight: number;
  /** Why the process gave up by itself; 0 when it did not. */
  readonly failureErrno: number;
  readonly failureStep: string;
  /** null: this generation has not answered anything. */
  readonly sinceAnswerMs: number | null;
  /** Read, write, flush, discard, write zeroes. */
  readonly operations: readonly SharedOperation[];
}

/** A request as it is recognised when it comes again, in whatever queue. */
export interface RequestIdentity {
  /** `UBLK_IO_OP_*`: 0 read, 1 write, 2 flush, 3 discard, 5 write zeroes. */
  readonly operation: number;
  readonly startSector: number;
  readonly sectors: number;
}

/** A request that a backend has not answered. */
export interface OutstandingRequest extends RequestIdentity {
  readonly ageMs: number;
  /** What the queue's backend got later was answered. */
  readonly overtaken: boolean;
  /** Requests of the same operation among it. */
  readonly overtakenByItsKind: boolean;
}

/** The requests of one operation that failed with one error; the rest is of the last of them. */
export interface FailedRequests extends RequestIdentity {
  readonly error: number;
  readonly count: number;
}

/** Where each of a queue's signs of life is among its `count` numbers. */
export const SIGNS = {
  /** One of `QueuePhase`. */
  phase: 0,
  /** Another number after each turn of the queue's loop, each answer, and each part of a long one. */
  progress: 1,
  /** Requests, by all generations. */
  answered: 2,
  /** How long its backend has had what it has had longest; 0: it has nothing. */
  oldestMs: 3,
  /** Requests that failed, by all generations. */
  failed: 4,
  count: 5,
} as const;

/** What the queues are to do with a request after crashes; `Mark` of shared_page.hpp. */
export interface MarkedRequest extends RequestIdentity {
  /** true: it is answered with EIO. false: the backend has nothing else while it has this. */
  readonly refused: boolean;
  readonly crashes: number;
}

/** How many requests can be marked; `kMaxMarked` of shared_page.hpp. */
export const MOST_MARKED = 256;

/** A device's shared page; shared_page.hpp. */
export interface SharedPages {
  readonly fd: number;
  /** Only while no queue process of the device is alive. `keepsOneBack`: its last FETCH waits until all are seen alive. */
  beginGeneration(keepsOneBack: boolean): void;
  readQueue(index: number): SharedQueue;
  /** Fills in the `SIGNS` of each queue. */
  signsOfLife(into: Float64Array): void;
  /** By operation and error, of all generations. */
  failures(index: number): readonly FailedRequests[];
  /**
   * Has the loop of a queue that serves turn once, if it can. Of a backend in JavaScript that has not turned since it was
   * asked before, `stackOf` is known then.
   */
  ask(index: number): void;
  /** What JavaScript does in such a queue's process; empty where that is not known. */
  stackOf(index: number): string;
  /** All that the queue's backend has, in no order. */
  outstanding(index: number): readonly OutstandingRequest[];
  /**
   * Replaces all marks; refused ones first. Only while no queue process of the device is alive, but for an empty list.
   */
  mark(requests: readonly MarkedRequest[]): void;
  /** What is marked, but for what has been answered since. */
  marked(): readonly MarkedRequest[];
  /** Every queue process finishes what its backend has, takes nothing new, and exits. */
  drain(): void;
}

/** Devices as `major:minor`. */
export interface OpenBlockDevices {
  readonly openers: readonly { readonly pid: number; readonly device: string }[];
  readonly loops: readonly LoopDevice[];
}

export interface LoopDevice {
  readonly name: string;
  /** As the kernel names it, maybe seen from another root directory. */
  readonly backingFile: string;
  /** Empty: not known to be on a block device. */
  readonly device: string;
}

/** Bytes. */
export interface DirectIoAlignment {
  readonly memory: number;
  /** Of offsets and lengths. */
  readonly offset: number;
}

/** What a queue process with a JavaScript backend is for. */
export interface InheritedQueue {
  readonly deviceId: number;
  readonly queue: number;
  readonly queues: number;
  readonly depth: number;
  readonly maxIoBytes: number;
  readonly size: number;
  /** fd of a stream socket to the supervisor. */
  readonly channel: number;
  /**
   * fds: of the file that the device's shared memory is in, then of the sockets that the files of what is below the backend are
   * parked in.
   */
  readonly files: readonly number[];
}

/** `UBLK_IO_OP_*` of linux/ublk_cmd.h. */
export const Operation = { read: 0, write: 1, flush: 2, discard: 3, writeZeroes: 5 } as const;

/** A native backend below one in JavaScript. */
export interface NativeDisk {
  /** Of each tag `maxIoBytes`. */
  readonly buffers: ArrayBuffer;
  readonly depth: number;
  readonly maxIoBytes: number;
  /** Bytes or -errno; undefined: that comes later. */
  submit(
    tag: number,
    operation: number,
    offset: number,
    length: number,
    fua: boolean,
    mayUnmap: boolean,
  ): number | undefined;
  close(): void;
}

interface NativeDiskClass {
  readonly depth: number;
  readonly maxIoBytes: number;
  new (
    backend: string,
    size: number,
    files: readonly number[],
    onAnswer: (tag: number, result: number) => void,
  ): Omit<NativeDisk, 'depth' | 'maxIoBytes'>;
}

interface NativeJsQueue {
  readonly buffers: ArrayBuffer;
  readonly requests: ArrayBuffer;
  readonly offsets: ArrayBuffer;
  readonly answers: ArrayBuffer;
  readonly progress: ArrayBuffer;
  start(): void;
  answer(count: number): void;
}

/** The queue of a process with a JavaScript backend; js_queue.cpp says what the arrays hold. */
export interface JsQueue {
  readonly buffers: ArrayBuffer;
  readonly requests: Int32Array;
  readonly offsets: Float64Array;
  readonly answers: Int32Array;
  /** One number, which the supervisor sees; another one is a sign of life. */
  readonly progress: Int32Array;
  /** Waits for the device's other queue processes, then fetches. Blocks the thread meanwhile. */
  start(): void;
  /** Answers the first `count` requests of `answers`, in one system call a batch. */
  answer(count: number): void;
}

/** An entry of a zip archive, as the archive describes it. */
export interface ZipEntryData {
  /** Where its data begins in the archive, in bytes. */
  readonly dataOffset: number;
  readonly compressedBytes: number;
  readonly bytes: number;
  /** CRC-32 of the data. */
  readonly crc: number;
  readonly deflated: boolean;
}

interface ZipIndexer {
  /** Resolves with true at the end. */
  step(): Promise<boolean>;
  finish(): number;
}

interface Binding {
  flock(fd: number): Promise<boolean>;
  lockForProcess(fd: number, locked: boolean): void;
  writeAtOnce(fd: number, bytes: Uint8Array): number;
  takesDirectIo(fd: number, bytes: number): Promise<boolean>;
  directIoAlignment(fd: number): Promise<DirectIoAlignment | null>;
  makeNode(path: string, block: boolean, major: number, minor: number): void;
  parkFiles(fds: readonly number[]): number;
  parkedFiles(socket: number): readonly number[];
  fallocate(fd: number, mode: number, offset: number, length: number): Promise<void>;
  openBlockDevices(): Promise<OpenBlockDevices>;
  ublkFeatures(): bigint;
  ublkDeviceInfo(id: number): UblkDeviceInfo | null;
  ioUringErrno(): number;
  listenSeqpacket(path: string): number;
  connectSeqpacket(path: string): number;
  forkZygote(nursery: number, listener: number, connection: number): void;
  ZygoteChannel: new (fd: number, onMessage: (message: ZygoteMessage) => void, onClose: () => void) => ZygoteChannel;
  MessageChannel: new (
    fd: number,
    onMessage: (bytes: Buffer, fds: readonly number[]) => void,
    onClose: () => void,
  ) => MessageChannel;
  CloseWatch: new (path: string, onClosed: () => void) => CloseWatch;
  ProcessWatch: new (pidfd: number, onExit: () => void) => ProcessWatch;
  openPidfd(pid: number): number;
  sendDatagram(address: string, text: string): void;
  streamPair(): readonly [number, number];
  outputPipe(): readonly [number, number];
  seqpacketPair(): readonly [number, number];
  replaceProcess(path: string, argv: readonly string[], environment: readonly string[], fd: number): never;
  endWithParent(): void;
  becomeIoFlusher(): void;
  dropPrivileges(uid: number, gid: number): void;
  userOf(nameOrUid: string | number): User | null;
  groupOf(name: string): number | null;
  peerOf(fd: number): Peer;
  inheritedQueue(): InheritedQueue | null;
  mapShared(fd: number, offset: number, bytes: number): ArrayBuffer;
  JsQueue: new (onBatch: (count: number) => void, onDrain: () => void, onEnd: () => void) => NativeJsQueue;
  NativeDisk: NativeDiskClass;
  SharedPages: new (queues: number, depth: number, memfd?: number) => SharedPages;
  ZipIndexer: new (
    archive: number,
    dataOffset: number,
    compressedBytes: number,
    bytes: number,
    crc: number,
    deflated: boolean,
  ) => ZipIndexer;
}

let addon: Binding | undefined;

/** Loaded at first use: `check`, `schema` and `--help` work where the addon was never built. */
function binding(): Binding {
  addon ??= loadAddon();
  return addon;
}

function loadAddon(): Binding {
  const path = `${packageRoot}build/Release/ublk.node`;
  try {
    return createRequire(import.meta.url)(path) as Binding;
  } catch (error) {
    const [reason] = messageOf(error).split('\n', 1);
    throw new SupervisorError(
      `loading ${path} failed: ${String(reason)}; build it for this machine, with g++ and liburing-dev installed: ` +
        `npx node-gyp rebuild -C ${packageRoot}`,
      { code: 'ADDON', cause: error },
    );
  }
}

/** `EBUSY` for 16, `ENODEV` for -19. */
export function errnoName(errno: number): string {
  return errno === 0 ? 'OK' : getSystemErrorName(-Math.abs(errno));
}

/** Gives the addon's errors the project's class and their errno's name. */
export function translated<Result>(call: () => Result): Result {
  try {
    return call();
  } catch (error) {
    return rethrowTranslated(error);
  }
}

function rethrowTranslated(error: unknown): never {
  const errno = errnoOf(error);
  if (errno === undefined) throw error;
  const code = errnoName(errno);
  throw new SupervisorError(`${messageOf(error)} (${code})`, { code, errno, cause: error });
}

/** Takes an exclusive flock(2) without waiting; false when somebody else has it. It goes with the last dup of `fd`. */
export async function flock(fd: number): Promise<boolean> {
  return binding().flock(fd).catch(rethrowTranslated);
}

/** Makes the node of a block or char device, which root alone may open. */
export function makeNode(path: string, block: boolean, major: number, minor: number): void {
  translated(() => {
    binding().makeNode(path, block, major, minor);
  });
}

/**
 * Takes, or gives back, the lock of fcntl(2) on a file, and waits for it. It is the process', so it keeps out those, too, to
 * whom the same open file was handed, and goes with the process.
 */
export function lockForProcess(fd: number, locked: boolean): void {
  translated(() => {
    binding().lockForProcess(fd, locked);
  });
}

/**
 * Writes what a pipe, socket, terminal or file takes without waiting for its reader, also where others share it without
 * O_NONBLOCK. Returns the number of bytes, 0 for none now, or -errno.
 */
export function writeAtOnce(fd: number, bytes: Uint8Array): number {
  return binding().writeAtOnce(fd, bytes);
}

/** What O_DIRECT asks of the file: null where its file system does not do direct I/O, or does not say. */
export async function directIoAlignment(fd: number): Promise<DirectIoAlignment | null> {
  return binding().directIoAlignment(fd).catch(rethrowTranslated);
}

/** Whether blocks of `bytes` can be read past the cache, by trying: where a file system does not say what O_DIRECT asks for. */
export async function takesDirectIo(fd: number, bytes: number): Promise<boolean> {
  return binding().takesDirectIo(fd, bytes).catch(rethrowTranslated);
}

/** Modes of fallocate(2), to be combined. */
export const KEEP_SIZE = 1;
export const PUNCH_HOLE = 2;

/** fallocate(2), in a thread of its own: it may take long. Rejects with the errno's name as code. */
export async function fallocate(fd: number, mode: number, offset: number, length: number): Promise<void> {
  await binding().fallocate(fd, mode, offset, length).catch(rethrowTranslated);
}

/** Who has which block device open; not who has it mounted. In a thread of its own, and no file system is asked. */
export function openBlockDevices(): Promise<OpenBlockDevices> {
  return binding().openBlockDevices();
}

/** What GET_FEATURES answers: the UBLK_F_* bits that this kernel's driver knows. */
export function ublkFeatures(): bigint {
  return translated(() => binding().ublkFeatures());
}

/** null: there is no such device. Never blocks, whatever state ublk is in. */
export function ublkDeviceInfo(id: number): UblkDeviceInfo | null {
  return translated(() => binding().ublkDeviceInfo(id));
}

/** 0 when an io_uring can be set up here as the queue processes need it, else the errno. */
export function ioUringErrno(): number {
  return binding().ioUringErrno();
}

/** The fd of a listening SOCK_SEQPACKET socket at `path`, mode 0600. */
export function listenSeqpacket(path: string): number {
  return translated(() => binding().listenSeqpacket(path));
}

/** The fd of a connection to what listens at `path`. */
export function connectSeqpacket(path: string): number {
  return translated(() => binding().connectSeqpacket(path));
}

/** Has the nursery at the other end of `nursery` fork a zygote that listens at `listener` and is connected to us. */
export function forkZygote(nursery: number, listener: number, connection: number): void {
  translated(() => {
    binding().forkZygote(nursery, listener, connection);
  });
}

/** Takes `fd`, a connection to a zygote, over. */
export function openZygoteChannel(
  fd: number,
  onMessage: (message: ZygoteMessage) => void,
  onClose: () => void,
): ZygoteChannel {
  return translated(() => new (binding().ZygoteChannel)(fd, onMessage, onClose));
}

/** inotify(7) of `path`: `onClosed` is called when whoever could write to it has closed it. */
export function watchCloses(path: string, onClosed: () => void): CloseWatch {
  return translated(() => new (binding().CloseWatch)(path, onClosed));
}

/** Takes `pidfd` over; `onExit` is called once. */
export function watchProcess(pidfd: number, onExit: () => void): ProcessWatch {
  return translated(() => new (binding().ProcessWatch)(pidfd, onExit));
}

/** null: there is no such process. Who cannot be sure that `pid` is still the same process has to look afterwards. */
export function openPidfd(pid: number): number | null {
  const pidfd = translated(() => binding().openPidfd(pid));
  return pidfd < 0 ? null : pidfd;
}

export function createSharedPages(queues: number, depth: number): SharedPages {
  return translated(() => new (binding().SharedPages)(queues, depth));
}

/** A shared page that an earlier supervisor made. Takes `memfd` over. */
export function reopenSharedPages(queues: number, depth: number, memfd: number): SharedPages {
  return translated(() => new (binding().SharedPages)(queues, depth, memfd));
}

/**
 * A socket in which open files wait for whoever has it. Who closes a file may wait for its file system, for ever if that hangs;
 * who closes this socket does not, as long as it is not the last who has the files.
 */
export function parkFiles(fds: readonly number[]): number {
  return translated(() => binding().parkFiles(fds));
}

/** What is parked in `socket`, as descriptors that the caller owns; it stays parked. */
export function parkedFiles(socket: number): readonly number[] {
  return translated(() => binding().parkedFiles(socket));
}

/** Takes `fd`, a socket that keeps messages apart, over. */
export function openMessageChannel(
  fd: number,
  onMessage: (bytes: Buffer, fds: readonly number[]) => void,
  onClose: () => void,
): MessageChannel {
  return translated(() => new (binding().MessageChannel)(fd, onMessage, onClose));
}

/** One datagram to a unix socket: a path, or `@` and an abstract name. Throws `EAGAIN` rather than wait. */
export function sendDatagram(address: string, text: string): void {
  translated(() => {
    binding().sendDatagram(address, text);
  });
}

/**
 * execve(2): this process goes on as another program. Descriptors are closed but for the standard streams and, unless it is
 * negative, `fd`. Throws when the program cannot be run.
 */
export function replaceProcess(
  path: string,
  argv: readonly string[],
  environment: readonly string[],
  fd: number,
): never {
  return translated(() => binding().replaceProcess(path, argv, environment, fd));
}

/** The two ends of a stream socket, as descriptors that the caller owns. */
export function streamPair(): readonly [number, number] {
  return translated(() => binding().streamPair());
}

/** The ends of a pipe, for reading and for writing, neither of which waits for the other. */
export function outputPipe(): readonly [number, number] {
  return translated(() => binding().outputPipe());
}

/** The two ends of a socket that keeps messages apart. */
export function seqpacketPair(): readonly [number, number] {
  return translated(() => binding().seqpacketPair());
}

/** For good: every capability and the way to new ones, and the user if another one is given. */
export function dropPrivileges({ uid, gid }: User = { uid: SAME_USER, gid: SAME_USER }): void {
  translated(() => {
    binding().dropPrivileges(uid, gid);
  });
}

/** The user of this name or uid, with its own group; null: there is none. */
export function userOf(nameOrUid: string | number): User | null {
  return translated(() => binding().userOf(nameOrUid));
}

/** The gid of the group of this name; null: there is none. */
export function groupOf(name: string): number | null {
  return translated(() => binding().groupOf(name));
}

/** Who connected to the unix socket whose accepted end is `fd`. Throws when the process is gone. */
export function peerOf(fd: number): Peer {
  return translated(() => binding().peerOf(fd));
}

/** prctl(PR_SET_PDEATHSIG): the kernel ends this process, even one that is stopped, with the process that started it. */
export function endWithParent(): void {
  translated(() => {
    binding().endWithParent();
  });
}

/**
 * From here on neither a thread of this process nor a child that it starts waits for memory which only writing to a block
 * device would free: the device may be ours, and wait for us.
 */
export function becomeIoFlusher(): void {
  translated(() => {
    binding().becomeIoFlusher();
  });
}

/** null in a process that is no queue process with a JavaScript backend. */
export function inheritedQueue(): InheritedQueue | null {
  return binding().inheritedQueue();
}

/** A part of a file, from a page on, as memory that everybody who maps it shares, for the process' life. */
export function mapShared(fd: number, offset: number, bytes: number): Buffer {
  return Buffer.from(translated(() => binding().mapShared(fd, offset, bytes)));
}

export interface QueueEvents {
  /** There are `count` requests in the arrays. */
  readonly onBatch: (count: number) => void;
  /** Nothing new comes. */
  readonly onDrain: () => void;
  /** Everything is answered, or the kernel has taken the queue back. */
  readonly onEnd: () => void;
}

/** Call once, in a process that inherited a queue. */
export function inheritQueue({ onBatch, onDrain, onEnd }: QueueEvents): JsQueue {
  const native = translated(() => new (binding().JsQueue)(onBatch, onDrain, onEnd));
  return {
    buffers: native.buffers,
    requests: new Int32Array(native.requests),
    offsets: new Float64Array(native.offsets),
    answers: new Int32Array(native.answers),
    progress: new Int32Array(native.progress),
    start: () => {
      translated(() => {
        native.start();
      });
    },
    answer: (count) => {
      native.answer(count);
    },
  };
}

/**
 * Opens the native half of a backend that has these files open, in this process. In a queue process only before
 * `inheritQueue`. `onAnswer`: a request that `submit` did not answer is.
 */
export function openNativeDisk(
  backend: string,
  size: number,
  files: readonly number[],
  onAnswer: (tag: number, result: number) => void,
): NativeDisk {
  const native = binding().NativeDisk;
  const disk = translated(() => new native(backend, size, files, onAnswer));
  return {
    buffers: disk.buffers,
    depth: native.depth,
    maxIoBytes: native.maxIoBytes,
    submit: (...request) => translated(() => disk.submit(...request)),
    close: () => {
      disk.close();
    },
  };
}

/**
 * Reads an entry of the archive through once. Resolves with the fd of the index that the queue processes need to serve
 * it; the caller closes it. Rejects with an Error whose message says what is wrong with the entry: `its CRC-32 is ...`.
 */
export async function indexZipEntry(archive: number, entry: ZipEntryData): Promise<number> {
  const { dataOffset, compressedBytes, bytes, crc, deflated } = entry;
  const indexer = translated(
    () => new (binding().ZipIndexer)(archive, dataOffset, compressedBytes, bytes, crc, deflated),
  );
  // In steps, so that others get their turn on libuv's few threads.
  while (!(await indexer.step()));
  return translated(() => indexer.finish());
}
