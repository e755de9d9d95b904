import { writeAtOnce } from '../native/addon/files.js';

/** How many bytes of lines wait for a reader; further lines are dropped. */
const MOST_WAITING = 2 ** 20;
const RETRY_MS = 100;

/**
 * Lines for a file descriptor whose reader may be slow, stopped or gone, or whose disk full: none of it may keep the
 * supervisor from a device that needs it.
 */
export class LogOutput {
  readonly #fd: number;
  readonly #onLoss: (lines: number) => void;
  #waiting: Buffer[] = [];
  #bytes = 0;
  #lost = 0;
  #retry: NodeJS.Timeout | null = null;

  /** `onLoss` is told how many lines were dropped when there is room again to say so. */
  constructor(fd: number, onLoss: (lines: number) => void) {
    this.#fd = fd;
    this.#onLoss = onLoss;
  }

  write(line: string): void {
    const data = Buffer.from(line);
    if (this.#bytes + data.length > MOST_WAITING) {
      this.#lost++;
      return;
    }
    this.#waiting.push(data);
    this.#bytes += data.length;
    if (this.#retry === null) this.#flush();
  }

  #flush(): void {
    this.#retry = null;
    for (let [line] = this.#waiting; line !== undefined; [line] = this.#waiting) {
      const written = writeAtOnce(this.#fd, line);
      if (written === 0) {
        this.#later();
        return;
      }
      if (written < 0) {
        // The reader went away or the disk is full (EPIPE, ENOSPC), and there is no other place to say so.
        this.#waiting = [];
        this.#bytes = 0;
        return;
      }
      this.#bytes -= written;
      if (written === line.length) this.#waiting.shift();
      else this.#waiting[0] = line.subarray(written);
    }
    if (this.#lost === 0) return;
    const lost = this.#lost;
    this.#lost = 0;
    this.#onLoss(lost);
  }

  #later(): void {
    this.#retry = setTimeout(() => this.#flush(), RETRY_MS).unref();
  }
}
