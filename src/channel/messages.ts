import type { LowerBackend } from '../../backends/interface.js';

/** Supervisor to queue process, the first and only message: what to serve. */
export interface LoadMessage {
  readonly device: string;
  /** Absolute path of the backend's module. */
  readonly module: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** What paths in them are relative to. Absolute. */
  readonly directory: string;
  /** What it has below it, of which the process has the files. */
  readonly lower: readonly LowerBackend[];
  /** A probe is to open nothing: only whether the module can be loaded and takes the options is asked. */
  readonly loadOnly?: true;
}

/** More of a message than a person reads; longer ones are cut. */
export const LONGEST_TEXT = 8192;

/** Among V8's last words when it ends a process for that. */
export const HEAP_FULL = 'JavaScript heap out of memory';

/** Exit code of a queue process whose backend could not be loaded or opened; 78 is EX_CONFIG of sysexits.h. */
export const EXIT_UNLOADABLE = 78;
