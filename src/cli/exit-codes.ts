import { SupervisorError } from '../errors.js';
import { DaemonExit, daemonExitOf } from '../error-codes.js';

/** Exit codes of every command but `start`, which has `DaemonExit`; documented in ublk-supervisor(8). */
export const CliExit = { ok: 0, failure: 1, usage: 2, notRunning: 3 } as const;

export function cliExitCode(error: unknown): number {
  return error instanceof SupervisorError && error.code === 'NOT_RUNNING' ? CliExit.notRunning : CliExit.failure;
}

/** `check` says what `start` would say. */
export function checkExitCode(error: unknown): number {
  return error instanceof SupervisorError && error.code === 'CONFIG' ? DaemonExit.config : CliExit.failure;
}

/** What `start` exits with when `error` ends it. */
export function daemonExitCode(error: unknown): number {
  return error instanceof SupervisorError ? daemonExitOf(error.code) : DaemonExit.internal;
}
