import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseSelection, UsageError, type Selection } from './runner/selection.js';
import { Report } from './runner/report.js';
import { lint, nativeTests, unitTests } from './runner/host-tests.js';
import { guestTests } from './runner/guest-tests.js';

/** `npm test`: runs what was asked for, one line a file; the last line is `N passed, N failed`. */

async function run(selection: Selection, cancelSignal: AbortSignal): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), 'ublk-test-'));
  const report = new Report(directory);
  const context = { selection, report, cancelSignal, stopped: () => cancelSignal.aborted };
  if (selection.wants('lint')) await lint(context);
  if (selection.wants('unit')) await unitTests(context);
  if (selection.wants('native')) await nativeTests(context);
  if (selection.wants('vm')) await guestTests(context);
  if (cancelSignal.aborted) {
    await rm(directory, { recursive: true });
    return 130;
  }
  const succeeded = report.finish();
  // What passed is of no interest later, and a run an hour would fill the temporary directory.
  if (succeeded) await rm(directory, { recursive: true });
  return succeeded ? 0 : 1;
}

const stopped = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    process.stderr.write(`npm test: ${signal}, stopping\n`);
    stopped.abort();
  });
}
try {
  process.exitCode = await run(parseSelection(process.argv.slice(2)), stopped.signal);
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`npm test: ${error.message}\n`);
  process.exitCode = 2;
}
