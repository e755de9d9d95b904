import { loadAddon, translated } from './load.js';

interface Addon {
  sendDatagram(address: string, text: string): void;
}

const addon = (): Addon => loadAddon() as Addon;

/** One datagram to a unix socket: a path, or `@` and an abstract name. Throws `EAGAIN` rather than wait. */
export function sendDatagram(address: string, text: string): void {
  translated(() => addon().sendDatagram(address, text));
}
