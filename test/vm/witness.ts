import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { waitFor } from './harness.js';

const STOP = '/run/witness-stop';
const ROUND = '/run/witness-round';

/** Writes to a device and reads it back, past the page cache, round after round, while others are made to suffer. */
export class Witness {
  readonly #exit: Promise<number | null>;

  private constructor(exit: Promise<number | null>) {
    this.#exit = exit;
  }

  static async of(path: string): Promise<Witness> {
    await rm(STOP, { force: true });
    const script = `
      until [ -e ${STOP} ]; do
        head -c 256K /dev/urandom > /run/witness-written
        dd if=/run/witness-written of=${path} bs=32k oflag=direct status=none
        dd if=${path} of=/run/witness-read bs=32k count=8 iflag=direct status=none
        cmp /run/witness-written /run/witness-read
        : > ${ROUND}
        sleep 0.3
      done`;
    const child = spawn('bash', ['-ec', script], { stdio: ['ignore', 'inherit', 'inherit'] });
    // A test that failed does not wait for it.
    child.unref();
    const witness = new Witness(new Promise((resolve) => child.once('exit', resolve)));
    await witness.round();
    return witness;
  }

  /** Resolves after a round that may have begun before. */
  async round(): Promise<void> {
    await rm(ROUND, { force: true });
    await waitFor('the witness getting its data back', () => existsSync(ROUND));
  }

  /** Ends it; rejects when anything that it did failed. */
  async end(): Promise<void> {
    await this.round();
    await writeFile(STOP, '');
    assert.equal(await this.#exit, 0, 'the witness met an error');
  }
}
