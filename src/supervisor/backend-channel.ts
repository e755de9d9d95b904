import { closeSync } from 'node:fs';
import { Socket } from 'node:net';
import { streamPair } from '../native/binding.js';
import { onFrames, sendFrame } from '../queue-proc/frames.js';
import { queueMessage, type BackendReport, type LoadMessage } from '../queue-proc/messages.js';

/** What a queue process with a JavaScript backend says; nothing on the I/O path goes this way. */
export class BackendChannel {
  /** The queue process' end, until `handedOver`. */
  readonly remote: number;
  /** Resolves when the process, and whoever else had that end, is gone and everything it said was heard. */
  readonly closed: Promise<void>;
  readonly #socket: Socket;
  #lastWords: { readonly message: string; readonly stack: string } | null = null;

  constructor(onReport: (report: BackendReport) => void) {
    const [local, remote] = streamPair();
    this.remote = remote;
    this.#socket = new Socket({ fd: local, readable: true, writable: true });
    this.#socket.on('error', () => undefined);
    this.closed = new Promise((resolve) => {
      this.#socket.once('close', () => {
        resolve();
      });
    });
    onFrames(this.#socket, (received) => {
      const message = queueMessage.parse(received);
      if (message.type === 'ending') this.#lastWords = message;
      else if (message.type !== 'opened') onReport(message);
    });
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
    closeSync(this.remote);
  }
}
