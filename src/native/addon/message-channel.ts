import { loadAddon, translated } from './load.js';

/** Messages with open files between two processes. */
export interface MessageChannel {
  /** The caller keeps its descriptors. That the other side is gone shows as its end alone. */
  send(bytes: Uint8Array, fds: readonly number[]): void;
  close(): void;
}

interface Addon {
  MessageChannel: new (
    fd: number,
    onMessage: (bytes: Buffer, fds: readonly number[]) => void,
    onClose: () => void,
  ) => MessageChannel;
}

const addon = (): Addon => loadAddon() as Addon;

/** Takes `fd`, a socket that keeps messages apart, over. */
export function openMessageChannel(
  fd: number,
  onMessage: (bytes: Buffer, fds: readonly number[]) => void,
  onClose: () => void,
): MessageChannel {
  return translated(() => new (addon().MessageChannel)(fd, onMessage, onClose));
}
