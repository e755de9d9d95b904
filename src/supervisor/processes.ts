import { readFileSync } from 'node:fs';

/** The field of that name in /proc/PID/status; undefined when there is no such process. */
function statusField(pid: number, name: string): string | undefined {
  try {
    const status = readFileSync(`/proc/${String(pid)}/status`, 'utf8');
    return new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1];
  } catch {
    return undefined;
  }
}

export function parentOf(pid: number): number | undefined {
  const parent = statusField(pid, 'PPid');
  return parent === undefined ? undefined : Number(parent);
}

/** By SIGSTOP or a debugger. */
export function isStopped(pid: number): boolean {
  return /^t/i.test(statusField(pid, 'State') ?? '');
}

/** What the process calls itself, at most 15 characters. */
export function nameOf(pid: number): string | undefined {
  return statusField(pid, 'Name');
}
