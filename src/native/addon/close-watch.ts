import { loadAddon, translated } from './load.js';

/** Watches one process by pidfd. */
export interface CloseWatch {
  /** No call comes any more. */
  end(): void;
}

interface Addon {
  CloseWatch: new (path: string, onClosed: () => void) => CloseWatch;
}

const addon = (): Addon => loadAddon() as Addon;

/** inotify(7) of `path`: `onClosed` is called when a process that could write to it has closed it. */
export function watchCloses(path: string, onClosed: () => void): CloseWatch {
  return translated(() => new (addon().CloseWatch)(path, onClosed));
}
