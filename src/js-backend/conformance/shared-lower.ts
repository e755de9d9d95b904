import type { BackendInput, LowerBackend } from '../../../backends/interface.js';
import { LowerBackends } from '../../../backends/module/lower-backends.js';
import { openBackend } from '../../../backends/registry.js';
import { takeLower } from '../lower.js';
import { lowerOpener } from '../open-lower.js';

export interface GivenLower {
  readonly lower: LowerBackend;
  /** Its place among those of the disk. */
  readonly place: number;
  /** Open in this process. */
  readonly files: readonly number[];
}

/** What a disk's instances have below them: open once, for all of them, and for those that replace them. */
export class SharedLower {
  readonly #lower = new LowerBackends({
    device: `test-${process.pid}`,
    openLower: lowerOpener(openBackend),
  });
  #last: Promise<unknown> = Promise.resolve();

  /** `given`: to the same instance before. Rejects with why it cannot be opened. */
  give(asked: BackendInput, given: Set<number>): Promise<GivenLower> {
    const one = this.#last.then(async () => {
      let place = takeLower(this.#lower.described, asked, given);
      if (place < 0) {
        await this.#lower.add(asked, process.cwd());
        place = takeLower(this.#lower.described, asked, given);
      }
      const lower = this.#lower.described[place];
      if (lower === undefined) throw new TypeError('it was opened and is not there');
      return { lower, place, files: this.#lower.filesOf(place) };
    });
    this.#last = one.catch(() => undefined);
    return one;
  }

  async end(): Promise<void> {
    await this.#last;
    await this.#lower.undo();
  }
}
