import { Writable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';

/**
 * In the place of standard output and standard error: each line that is written is one of the log. A process that prints never waits, as
 * for a pipe that nobody reads.
 */
export class PrintedLines extends Writable {
  readonly #decoder = new StringDecoder('utf8');
  readonly #longest: number;
  readonly #onLine: (line: string) => void;
  #rest = '';

  /** `longest`: in characters; the rest of a longer line is left out. */
  constructor(longest: number, onLine: (line: string) => void) {
    super({ decodeStrings: true });
    this.#longest = longest;
    this.#onLine = onLine;
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    const lines = (this.#rest + this.#decoder.write(chunk)).split('\n');
    this.#rest = (lines.pop() ?? '').slice(0, this.#longest);
    for (const line of lines) if (line.trim() !== '') this.#onLine(line.slice(0, this.#longest));
    done();
  }
}
