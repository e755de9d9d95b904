import { readFileSync } from 'node:fs';

/** The field of that name in /proc/PID/status; undefined when there is no such process. */
function statusField(pid: number, name: string): string | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    return new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1];
  } catch {
    return undefined;
  }
}

export function parentOf(pid: number): number | undefined {
  const parent = statusField(pid, 'PPid');
  return parent === undefined ? undefined : Number(parent);
}

/**
 * What a process does, or its first thread. `asleep`: uninterruptibly, so that no signal ends it before that is over;
 * `ending`: it was ended, and something keeps it from being gone.
 */
export type ProcessState = 'stopped' | 'asleep' | 'ending' | 'running' | 'waiting';

/** null: it is gone. */
export function stateOfProcess(pid: number): ProcessState | null {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return null;
  }
  // Behind the name, in which anything may be.
  const fields = stat
    .slice(stat.lastIndexOf(')') + 2)
    .trim()
    .split(' ');
  const state = fields.at(0) ?? '';
  if (/t/i.test(state)) return 'stopped';
  // The exit code, which is there as soon as a fatal signal is sent; a stopped process has one too.
  if (state === 'Z' || fields.at(-1) !== '0') return 'ending';
  return state === 'D' ? 'asleep' : state === 'R' ? 'running' : 'waiting';
}

/** What the process calls itself, at most 15 characters. */
export function nameOf(pid: number): string | undefined {
  return statusField(pid, 'Name');
}
