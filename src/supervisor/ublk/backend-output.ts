import { closeSync, readSync } from 'node:fs';
import { Socket } from 'node:net';
import { outputPipe } from '../../native/addon/system.js';
import { HEAP_FULL, LONGEST_TEXT } from '../../channel/messages.js';
import { PrintedLines } from '../../channel/printed-lines.js';

/** How long to wait after each piece that was read, so that a process that prints without end costs us little. What the pipe has no room for is lost. */
const PAUSE_MS = 100;
const PIECE_BYTES = 64 * 1024;

/**
 * What the queue processes of a backend in JavaScript print past Node's streams: V8 when it gives up, native code, programs
 * that they start. A pipe for all of them, which takes what it has room for and never makes anybody wait.
 */
export class BackendOutput {
  /** Our end, for the zygote to keep a copy of. */
  readonly local: number;
  /** The queue processes' end, until `handedOver`. */
  readonly remote: number | null;
  readonly #socket: Socket;
  readonly #lines: PrintedLines;
  #heapFull = false;

  /** `inherited`: our end of a pipe that an earlier supervisor had made; taken over. */
  constructor(onLine: (line: string) => void, inherited?: number) {
    const [local, remote] = inherited === undefined ? outputPipe() : [inherited, null];
    this.local = local;
    this.remote = remote;
    this.#lines = new PrintedLines(LONGEST_TEXT, (line) => {
      if (line.includes(HEAP_FULL)) this.#heapFull = true;
      onLine(line);
    });
    this.#socket = new Socket({ fd: local, readable: true, writable: false });
    this.#socket.on('error', () => undefined);
    // What they start may outlive them.
    this.#socket.unref();
    this.#socket.on('data', (piece: Buffer) => {
      this.#lines.write(piece);
      this.#socket.pause();
      // A limit of how much is read in a second; nothing waits for it.
      setTimeout(() => this.#socket.resume(), PAUSE_MS).unref();
    });
  }

  /** Whether one of them ended because its heap was full; asked once for each end. */
  sawFullHeap(): boolean {
    this.#readWhatIsThere();
    const full = this.#heapFull;
    this.#heapFull = false;
    return full;
  }

  /** To be called once the processes have inherited their end, or will not. */
  handedOver(): void {
    if (this.remote !== null) closeSync(this.remote);
  }

  #readWhatIsThere(): void {
    if (this.#socket.destroyed) return;
    try {
      const piece = Buffer.alloc(PIECE_BYTES);
      this.#lines.write(piece.subarray(0, readSync(this.local, piece)));
    } catch {
      // Nothing (EAGAIN).
    }
  }
}
