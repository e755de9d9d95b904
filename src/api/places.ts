import { readFileSync, realpathSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

/** Where the control socket, the journal and the lock are: the option, else what systemd gave, else the standard place. */
export function runtimeDirectory(option: string | undefined): string {
  // systemd separates several RuntimeDirectory= with colons; the first is ours.
  const given = process.env.RUNTIME_DIRECTORY?.split(':')[0];
  return option ?? (given === undefined || given === '' ? '/run/ublk-supervisor' : given);
}

/** The directory for crash reports, chosen likewise. */
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

/** Where the zygote of that number listens. */
export function zygoteSocket(runtimeDir: string, number: number): string {
  return join(runtimeDir, `zygote-${number}.sock`);
}

/** The flag of a listening socket in /proc/net/unix. */
const LISTENS = '00010000';

/** How many zygotes, each with its device, there are; a socket's file alone outlives its zygote. */
export function zygotesIn(runtimeDir: string): number {
  try {
    const directory = realpathSync(runtimeDir);
    const sockets = readFileSync('/proc/net/unix', 'utf8').split('\n');
    return sockets.filter((line) => {
      const [, , , flags, , , , path = ''] = line.trim().split(/ +/);
      return flags === LISTENS && dirname(path) === directory && basename(path).startsWith('zygote-');
    }).length;
  } catch {
    return 0;
  }
}
