import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { root, type Context } from './context.js';
import { endingOf, runProgram, runTap } from './program.js';
import { TapCounter, type Outcome } from './tap.js';

/** The tests that need no ublk. */

/** All of lint counts as one test. */
export async function lint(context: Context): Promise<void> {
  const { code, output, milliseconds } = await runProgram('npm', ['run', '--silent', 'lint'], context);
  if (context.stopped()) return;
  const outcome: Outcome = { passed: code === 0 ? 1 : 0, skipped: 0, failures: code === 0 ? [] : ['npm run lint'] };
  context.report.file('lint', outcome, milliseconds, output);
}

/** test/unit with tap, which runs several files at a time; each is reported as it ends. */
export async function unitTests(context: Context): Promise<void> {
  const { report, selection, stopped } = context;
  const files = testFiles('unit').filter((file) => selection.wantsFile(file));
  if (files.length === 0) return;
  const failedFiles: string[] = [];
  const counter = new TapCounter('subtests', (file, outcome, milliseconds) => {
    if (outcome.failures.length > 0) failedFiles.push(file);
    report.file(file.replace(/^dist\/test\//, ''), outcome, milliseconds);
  });
  const ran = await runProgram(
    'node_modules/.bin/tap',
    ['run', '--disable-coverage', '--timeout=120', '--reporter=tap', ...files.map((file) => `dist/test/${file}`)],
    context,
    (text) => counter.write(text),
  );
  if (stopped()) return;
  const { failures } = counter.end();
  // What failed in a file has been reported.
  if (failedFiles.length === 0 && (failures.length > 0 || ran.code !== 0)) {
    report.file('unit', { passed: 0, skipped: 0, failures: [failures[0] ?? endingOf(ran)] }, ran.milliseconds);
    failedFiles.push('unit');
  }
  if (failedFiles.length > 0) report.keep('unit', ran.output);
}

/** The C++ tests, with the sanitizers. */
export async function nativeTests(context: Context): Promise<void> {
  if (!existsSync(join(root, 'scripts/test-native')) || !context.selection.wantsFile('native')) return;
  const { outcome, output, milliseconds } = await runTap('scripts/test-native', [], 'points', context);
  if (!context.stopped()) context.report.file('native', outcome, milliseconds, output);
}

/** Compiled tests, below dist/test, of which there still is the source. */
export function testFiles(folder: string): string[] {
  return readdirSync(join(root, 'test', folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.test.ts'))
    .sort()
    .map((name) => `${folder}/${name.replace(/\.ts$/, '.js')}`);
}
