import { DemoError, command } from './command.js';

interface FioOutput {
  readonly jobs: readonly { readonly error: number; readonly read: { readonly io_bytes: number } }[];
}

/** fio, writing random blocks of a file with checksums in them and reading all of them back, again and again. */
export class Verifier {
  readonly #cancel = new AbortController();
  readonly #ended: Promise<void>;
  #stopping = false;
  #rounds = 0;
  #verifiedBytes = 0;
  #problem: DemoError | undefined;

  constructor(path: string) {
    this.#ended = this.#run(path);
  }

  get rounds(): number {
    return this.#rounds;
  }

  get verifiedBytes(): number {
    return this.#verifiedBytes;
  }

  /** Throws when fio has seen an error or data that it did not write. */
  check(): void {
    if (this.#problem) throw this.#problem;
  }

  /** Resolves when the round that runs has ended. */
  async finish(): Promise<void> {
    this.#stopping = true;
    await this.#ended;
  }

  async kill(): Promise<void> {
    this.#cancel.abort();
    await this.finish();
  }

  async #run(path: string): Promise<void> {
    while (!this.#stopping && !this.#problem) {
      try {
        const { jobs } = JSON.parse(await command('fio', roundOf(path), this.#options())) as FioOutput;
        if (jobs.some(({ error }) => error !== 0)) throw new DemoError('fio reports an error');
        for (const { read } of jobs) this.#verifiedBytes += read.io_bytes;
        this.#rounds += 1;
      } catch (error) {
        this.#problem = error instanceof DemoError ? error : new DemoError(`fio: ${String(error)}`);
      }
    }
  }

  #options(): { timeoutMs: number; cancelSignal: AbortSignal } {
    return { timeoutMs: 120_000, cancelSignal: this.#cancel.signal };
  }
}

function roundOf(path: string): string[] {
  return [
    ...['--name=verify', `--filename=${path}`, '--size=16m', '--rw=randwrite', '--bs=16k', '--direct=1'],
    ...['--ioengine=libaio', '--iodepth=8', '--verify=crc32c', '--verify_fatal=1', '--randrepeat=0'],
    ...['--fallocate=none', '--output-format=json'],
  ];
}
