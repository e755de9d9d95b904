import { loadAddon, translated } from './load.js';

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

interface Addon {
  ublkFeatures(): bigint;
  ublkDeviceInfo(id: number): UblkDeviceInfo | null;
  ioUringErrno(): number;
  listenSeqpacket(path: string): number;
  connectSeqpacket(path: string): number;
  streamPair(): readonly [number, number];
  outputPipe(): readonly [number, number];
  seqpacketPair(): readonly [number, number];
  replaceProcess(path: string, argv: readonly string[], environment: readonly string[], fd: number): never;
  endWithParent(): void;
  becomeIoFlusher(): void;
  mapShared(fd: number, offset: number, bytes: number): ArrayBuffer;
}

const addon = (): Addon => loadAddon() as Addon;

/** What GET_FEATURES answers: the UBLK_F_* bits that this kernel's driver knows. */
export function ublkFeatures(): bigint {
  return translated(() => addon().ublkFeatures());
}

/** null: there is no such device. Never blocks, whatever state ublk is in. */
export function ublkDeviceInfo(id: number): UblkDeviceInfo | null {
  return translated(() => addon().ublkDeviceInfo(id));
}

/** 0 when an io_uring can be set up here as the queue processes need it, else the errno. */
export function ioUringErrno(): number {
  return addon().ioUringErrno();
}

/** The fd of a listening SOCK_SEQPACKET socket at `path`, mode 0600. */
export function listenSeqpacket(path: string): number {
  return translated(() => addon().listenSeqpacket(path));
}

/** The fd of a connection to what listens at `path`. */
export function connectSeqpacket(path: string): number {
  return translated(() => addon().connectSeqpacket(path));
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
  return translated(() => addon().replaceProcess(path, argv, environment, fd));
}

/** The two ends of a stream socket, as descriptors that the caller owns. */
export function streamPair(): readonly [number, number] {
  return translated(() => addon().streamPair());
}

/** The ends of a pipe, for reading and for writing, neither of which waits for the other. */
export function outputPipe(): readonly [number, number] {
  return translated(() => addon().outputPipe());
}

/** The two ends of a socket that keeps messages apart. */
export function seqpacketPair(): readonly [number, number] {
  return translated(() => addon().seqpacketPair());
}

/** prctl(PR_SET_PDEATHSIG): the kernel ends this process, even one that is stopped, with the process that started it. */
export function endWithParent(): void {
  translated(() => addon().endWithParent());
}

/**
 * From here on neither a thread of this process nor a child that it starts waits for memory which only writing to a block
 * device would free: the device may be ours, and wait for us.
 */
export function becomeIoFlusher(): void {
  translated(() => addon().becomeIoFlusher());
}

/** A part of a file, from a page on, as memory that everybody who maps it shares, for the process' life. */
export function mapShared(fd: number, offset: number, bytes: number): Buffer {
  return Buffer.from(translated(() => addon().mapShared(fd, offset, bytes)));
}
