import { messageOf } from '../../errors.js';
import { formatSize } from '../../units.js';
import type { Check, RandomSettings } from './checks.js';
import { TestDevice } from './test-device.js';
import type { Disk } from './disk.js';

export interface CheckResult {
  readonly name: string;
  readonly outcome: 'ok' | 'fail' | 'skip';
  /** What is wrong, maybe several lines; or what was found, or why the check was left out. */
  readonly detail: string;
}

/** Makes the checks of the disk that `open` resolves with, which ends with them, and yields what each found. */
export async function* runChecks(
  open: () => Promise<Disk>,
  checks: readonly Check[],
  random: RandomSettings,
): AsyncGenerator<CheckResult, void> {
  let disk: Disk;
  try {
    disk = await open();
  } catch (error) {
    yield { name: 'opens', outcome: 'fail', detail: messageOf(error) };
    return;
  }
  const device = new TestDevice(disk);
  yield { name: 'opens', outcome: 'ok', detail: summary(device) };
  let broken = false;
  try {
    for (const { name, needs, run } of checks) {
      if (needs !== undefined && !device.can(needs)) {
        yield { name, outcome: 'skip', detail: `the backend has no ${needs}` };
        continue;
      }
      try {
        if (broken) await device.reset();
        broken = true;
        await run(device, random);
        broken = false;
        yield { name, outcome: 'ok', detail: '' };
      } catch (error) {
        yield { name, outcome: 'fail', detail: messageOf(error) };
      }
    }
  } finally {
    await disk.end();
  }
}

function summary({ announced, blockSize }: TestDevice): string {
  const { size, readOnly, flush, discard, writeZeroes } = announced;
  const can = Object.entries({ 'read-only': readOnly, flush, discard, writeZeroes }).flatMap(([name, has]) =>
    has ? [name] : [],
  );
  return [formatSize(size), `blocks of ${blockSize} bytes`, ...can].join(', ');
}
