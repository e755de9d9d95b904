import { readFileSync } from 'node:fs';

/** Whether the process is stopped, by SIGSTOP or a debugger. */
export function isStopped(pid: number): boolean {
  try {
    return /^State:\s*[Tt]/m.test(readFileSync(`/proc/${String(pid)}/status`, 'utf8'));
  } catch {
    return false;
  }
}
