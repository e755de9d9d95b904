import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SupervisorError } from '../../errors.js';
import { checks } from './checks.js';
import { runChecks, type CheckResult } from './run.js';
import { WorkerDisk } from './worker-disk.js';

export type { CheckResult } from './run.js';

/** The conformance suite for backends: everything but the kernel. Exported as `ublk-supervisor/testing`. */

export interface TestSettings {
  /** Chooses the random operations. Left out: another one each time. */
  readonly seed?: number;
  /** How many sequences of random operations are tried. Left out: 100. */
  readonly runs?: number;
  /** Milliseconds that opening and every request may take. Left out: 10 000. */
  readonly deadlineMs?: number;
}

/**
 * Runs the suite on a backend, each instance in a worker thread of its own, and yields what every check found. A device
 * that can be written to is overwritten.
 *
 * @param module path or file: URL of the backend's module
 * @param options the backend's part of a configuration, without `type`
 */
export async function* checkBackend(
  module: string | URL,
  options: Readonly<Record<string, unknown>> = {},
  { seed = Math.floor(Math.random() * 2 ** 31), runs = 100, deadlineMs = 10_000 }: TestSettings = {},
): AsyncGenerator<CheckResult, void> {
  yield* runChecks(() => WorkerDisk.open({ module: pathOf(module), options, deadlineMs }), checks, { seed, runs });
}

/**
 * As `checkBackend`, for a test of any framework: rejects with a `SupervisorError` of code `BACKEND` that has a line or
 * more for every check that failed.
 */
export async function testBackend(
  module: string | URL,
  options: Readonly<Record<string, unknown>> = {},
  settings: TestSettings = {},
): Promise<void> {
  const failures: string[] = [];
  for await (const { name, outcome, detail } of checkBackend(module, options, settings)) {
    if (outcome === 'fail') failures.push(`${name}: ${detail}`);
  }
  if (failures.length > 0) throw new SupervisorError(failures.join('\n'), { code: 'BACKEND' });
}

function pathOf(module: string | URL): string {
  return module instanceof URL || module.startsWith('file:') ? fileURLToPath(module) : resolve(module);
}
