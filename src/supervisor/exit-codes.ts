import { SupervisorError } from '../errors.js';

/** Exit codes of the daemon, from sysexits(3); documented in ublk-supervisor(8). */
export const DaemonExit = {
  ok: 0,
  usage: 64,
  unavailable: 69,
  internal: 70,
  os: 71,
  cannotCreate: 73,
  permission: 77,
  config: 78,
} as const;

const BY_CODE: Readonly<Record<string, number>> = {
  NO_UBLK: DaemonExit.unavailable,
  BAD_KERNEL: DaemonExit.unavailable,
  NO_IO_URING: DaemonExit.unavailable,
  USAGE: DaemonExit.usage,
  RUNTIME_DIR: DaemonExit.cannotCreate,
  RUNNING: DaemonExit.cannotCreate,
  EPERM: DaemonExit.permission,
  EACCES: DaemonExit.permission,
  CONFIG: DaemonExit.config,
};

/** What the daemon exits with when `error` ends it. */
export function daemonExitCode(error: unknown): number {
  if (!(error instanceof SupervisorError)) return DaemonExit.internal;
  return BY_CODE[error.code] ?? DaemonExit.os;
}
