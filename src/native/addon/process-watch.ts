import { loadAddon, translated } from './load.js';

export interface ProcessWatch {
  /** SIGKILL; harmless when the process is gone. */
  kill(): void;
}

interface Addon {
  ProcessWatch: new (pidfd: number, onExit: () => void) => ProcessWatch;
  openPidfd(pid: number): number;
}

const addon = (): Addon => loadAddon() as Addon;

/** Takes `pidfd` over; `onExit` is called once. */
export function watchProcess(pidfd: number, onExit: () => void): ProcessWatch {
  return translated(() => new (addon().ProcessWatch)(pidfd, onExit));
}

/** null: there is no such process. Who cannot be sure that `pid` is still the same process has to look afterwards. */
export function openPidfd(pid: number): number | null {
  const pidfd = translated(() => addon().openPidfd(pid));
  return pidfd < 0 ? null : pidfd;
}
