import { getSystemErrorMap, getSystemErrorName } from 'node:util';
import type { Errno, ErrorCode } from './error-codes.js';

/** Where an operation failed, for the log, `status` and programs that read `--json`. */
export interface ErrorContext {
  readonly code: ErrorCode;
  /** Positive errno where the kernel or libc gave one. */
  readonly errno?: number | undefined;
  readonly device?: string | undefined;
  readonly queue?: number | undefined;
  readonly cause?: unknown;
}

/**
 * The project's one error class. The message is a single line that a person can act on:
 * `operation on object failed: reason (ERRNO); what to do`.
 */
export class SupervisorError extends Error {
  override readonly name = 'SupervisorError';
  /** Stable, for programs. */
  readonly code: ErrorCode;
  readonly errno: number | undefined;
  readonly device: string | undefined;
  readonly queue: number | undefined;

  constructor(message: string, context: ErrorContext) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.code = context.code;
    this.errno = context.errno;
    this.device = context.device;
    this.queue = context.queue;
  }
}

/** A `SupervisorError` as it is; anything else, which was not foreseen, as the failure of `operation`. */
export function failureOf(error: unknown, operation: string, device?: string): SupervisorError {
  if (error instanceof SupervisorError) return error;
  return new SupervisorError(`${operation} failed: ${messageOf(error)}`, { code: 'INTERNAL', device, cause: error });
}

/** The one-line message of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** `no such file or directory (ENOENT)` for a failed system call, the message of anything else that was thrown. */
export function reasonOf(error: unknown): string {
  const errno = errnoOf(error);
  const known = errno === undefined ? undefined : getSystemErrorMap().get(-errno);
  return known ? `${known[1]} (${known[0]})` : messageOf(error);
}

/** The positive errno of a failed system call. */
export function errnoOf(error: unknown): number | undefined {
  const errno: unknown = error instanceof Error && 'errno' in error ? error.errno : undefined;
  return typeof errno === 'number' ? Math.abs(errno) : undefined;
}

/** `EBUSY` for 16, `ENODEV` for -19. */
export function errnoName(errno: number): Errno {
  return getSystemErrorName(-Math.abs(errno)) as Errno;
}
