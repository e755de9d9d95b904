import { join } from 'node:path';

/** Where the control socket, the journal and the lock are: the option, else what systemd gave, else the standard place. */
export function runtimeDirectory(option: string | undefined): string {
  // systemd separates several RuntimeDirectory= with colons; the first is ours.
  const given = process.env.RUNTIME_DIRECTORY?.split(':')[0];
  return option ?? (given === undefined || given === '' ? '/run/ublk-supervisor' : given);
}

/** Where crash reports are kept, chosen likewise. */
export function stateDirectory(option: string | undefined): string {
  const given = process.env.STATE_DIRECTORY?.split(':')[0];
  return option ?? (given === undefined || given === '' ? '/var/lib/ublk-supervisor' : given);
}

export function controlSocket(runtimeDir: string): string {
  return join(runtimeDir, 'control.sock');
}

/** Locked while a supervisor uses the directory. */
export function lockFile(runtimeDir: string): string {
  return join(runtimeDir, 'lock');
}
