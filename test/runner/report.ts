import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { withoutPassed, type Outcome } from './tap.js';

/** What a person reads: a line a file while the tests run, the output of what failed, and the sum. */
export class Report {
  readonly #directory: string;
  #passed = 0;
  #failures: string[] = [];

  /** @param directory where the output of what failed is kept */
  constructor(directory: string) {
    this.#directory = directory;
  }

  /** One file is done. `output` is shown when something in it failed. */
  file(name: string, { passed, skipped, failures }: Outcome, milliseconds: number, output = ''): void {
    this.#passed += passed;
    this.#failures.push(...failures.map((failure) => `${name}: ${failure}`));
    const counts = [
      `${passed} passed`,
      ...(failures.length > 0 ? [`${failures.length} failed`] : []),
      ...(skipped > 0 ? [`${skipped} skipped`] : []),
    ].join(', ');
    const verdict = failures.length === 0 ? 'ok  ' : 'FAIL';
    this.line(`${verdict} ${name.padEnd(44)} ${counts}, ${(milliseconds / 1000).toFixed(1)} s`);
    if (failures.length > 0 && output !== '') this.keep(name, output);
  }

  line(text: string): void {
    process.stdout.write(`${text}\n`);
  }

  /** Stores output, and shows what of it is about failures. */
  keep(name: string, output: string): void {
    const path = join(this.#directory, `${name.replace(/[^a-z0-9.-]+/gi, '-')}.log`);
    writeFileSync(path, output);
    this.line(`---- ${path}`);
    this.line(withoutPassed(output).trimEnd());
    this.line('----');
  }

  /** Says what all of it came to; whether that is success. */
  finish(): boolean {
    const failed = this.#failures.length;
    if (failed > 0) {
      this.line(`\nfailed, with all output in ${this.#directory}:`);
      for (const failure of this.#failures) this.line(`  ${failure}`);
    }
    if (this.#passed + failed === 0) this.line('no test ran');
    this.line(`\n${this.#passed} passed, ${failed} failed`);
    return failed === 0 && this.#passed > 0;
  }
}
