import { loadAddon, translated } from './load.js';

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

interface Addon {
  NativeDisk: NativeDiskClass;
}

const addon = (): Addon => loadAddon() as Addon;

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
  const native = addon().NativeDisk;
  const disk = translated(() => new native(backend, size, files, onAnswer));
  return {
    buffers: disk.buffers,
    depth: native.depth,
    maxIoBytes: native.maxIoBytes,
    submit: (...request) => translated(() => disk.submit(...request)),
    close: () => disk.close(),
  };
}
