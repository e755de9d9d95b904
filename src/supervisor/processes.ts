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

/** What a process does, or its first thread; `asleep`: uninterruptibly, so that no signal ends it before that is over. */
export type ProcessState = 'stopped' | 'asleep' | 'running' | 'waiting';

/** null: it is gone. */
export function stateOfProcess(pid: number): ProcessState | null {
  const [state] = statusField(pid, 'State') ?? '';
  if (state === undefined) return null;
  return /t/i.test(state) ? 'stopped' : state === 'D' ? 'asleep' : state === 'R' ? 'running' : 'waiting';
}

/** What the process calls itself, at most 15 characters. */
export function nameOf(pid: number): string | undefined {
  return statusField(pid, 'Name');
}
