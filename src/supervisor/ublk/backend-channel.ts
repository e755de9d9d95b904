import { closeSync } from 'node:fs';
import { Socket } from 'node:net';
import { streamPair } from '../../native/addon/system.js';
import { onFrames, sendFrame } from '../../channel/frames.js';
import { queueMessage, type BackendReport } from '../../channel/message-schema.js';
import type { LoadMessage } from '../../channel/messages.js';

/** What a queue process with a JavaScript backend says; nothing on the I/O path goes this way. */
export class BackendChannel {
  /** Our end, for the zygote to keep a copy of. */
  readonly local: number;
  /** The queue process' end, until `handedOver`. */
  readonly remote: number | null;
  /** Resolves when all that had the other end are gone, and everything they said was read. */
  readonly closed: Promise<void>;
  readonly #socket: Socket;
  #lastWords: { readonly message: string; readonly stack: string } | null = null;

  /** `inherited`: our end of a channel that an earlier supervisor had made; taken over. */
  constructor(onReport: (report: BackendReport) => void, inherited?: number) {
    const [local, remote] = inherited === undefined ? streamPair() : [inherited, null];
    this.local = local;
    this.remote = remote;
    this.#socket = new Socket({ fd: local, readable: true, writable: true });
    this.#socket.on('error', () => undefined);
    this.closed = new Promise((resolve) => {
      this.#socket.once('close', () => resolve());
    });
    const onMessage = (received: unknown): void => {
      const message = queueMessage.parse(received);
      if (message.type === 'ending') this.#lastWords = message;
      else if (message.type === 'error' || message.type === 'log') onReport(message);
    };
    onFrames(this.#socket, onMessage, { midway: inherited !== undefined });
  }

  /** Why the process ended by itself. */
  get lastWords(): { readonly message: string; readonly stack: string } | null {
    return this.#lastWords;
  }

  load(message: LoadMessage): void {
    sendFrame(this.#socket, message);
  }

  /** To be called once the process has inherited its end, or will not. */
  handedOver(): void {
    if (this.remote !== null) closeSync(this.remote);
  }
}
