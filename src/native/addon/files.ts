import { loadAddon, rethrowTranslated, translated } from './load.js';

/** Bytes. */
export interface DirectIoAlignment {
  readonly memory: number;
  /** Of offsets and lengths. */
  readonly offset: number;
}

/** Modes of fallocate(2), to be combined. */
export const KEEP_SIZE = 1;

export const PUNCH_HOLE = 2;

interface Addon {
  flock(fd: number): Promise<boolean>;
  lockForProcess(fd: number, locked: boolean): void;
  writeAtOnce(fd: number, bytes: Uint8Array): number;
  takesDirectIo(fd: number, bytes: number): Promise<boolean>;
  directIoAlignment(fd: number): Promise<DirectIoAlignment | null>;
  makeNode(path: string, block: boolean, major: number, minor: number): void;
  parkFiles(fds: readonly number[]): number;
  parkedFiles(socket: number): readonly number[];
  fallocate(fd: number, mode: number, offset: number, length: number): Promise<void>;
}

const addon = (): Addon => loadAddon() as Addon;

/** Takes an exclusive flock(2) without waiting; false when another process has it. It goes with the last dup of `fd`. */
export async function flock(fd: number): Promise<boolean> {
  return addon().flock(fd).catch(rethrowTranslated);
}

/** Makes the node of a block or char device, which root alone may open. */
export function makeNode(path: string, block: boolean, major: number, minor: number): void {
  translated(() => addon().makeNode(path, block, major, minor));
}

/**
 * Takes, or gives back, the lock of fcntl(2) on a file, and waits for it. It is the process', so it keeps out those, too, to
 * whom the same open file was handed, and goes with the process.
 */
export function lockForProcess(fd: number, locked: boolean): void {
  translated(() => addon().lockForProcess(fd, locked));
}

/**
 * Writes what a pipe, socket, terminal or file takes without waiting for its reader, also where others share it without
 * O_NONBLOCK. Returns the number of bytes, 0 for none now, or -errno.
 */
export function writeAtOnce(fd: number, bytes: Uint8Array): number {
  return addon().writeAtOnce(fd, bytes);
}

/** What O_DIRECT asks of the file: null where its file system does not do direct I/O, or does not say. */
export async function directIoAlignment(fd: number): Promise<DirectIoAlignment | null> {
  return addon().directIoAlignment(fd).catch(rethrowTranslated);
}

/** Whether blocks of `bytes` can be read past the cache, by trying: where a file system does not say what O_DIRECT asks for. */
export async function takesDirectIo(fd: number, bytes: number): Promise<boolean> {
  return addon().takesDirectIo(fd, bytes).catch(rethrowTranslated);
}

/** fallocate(2), in a thread of its own: it may take long. Rejects with the errno's name as code. */
export async function fallocate(fd: number, mode: number, offset: number, length: number): Promise<void> {
  await addon().fallocate(fd, mode, offset, length).catch(rethrowTranslated);
}

/**
 * A socket in which open files wait for its owner. A process that closes a file may wait for its file system, for ever if that hangs;
 * who closes this socket does not, as long as it is not the last who has the files.
 */
export function parkFiles(fds: readonly number[]): number {
  return translated(() => addon().parkFiles(fds));
}

/** What is parked in `socket`, as descriptors that the caller owns; it stays parked. */
export function parkedFiles(socket: number): readonly number[] {
  return translated(() => addon().parkedFiles(socket));
}
