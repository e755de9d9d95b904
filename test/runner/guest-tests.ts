import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root, type Context } from './context.js';
import { testFiles } from './host-tests.js';
import { endingOf, runProgram, runTap } from './program.js';
import type { Selection } from './selection.js';

/** The tests that need a kernel with ublk: each file on each kernel, in a fresh guest. */

/** As many as there are CPUs here, at most: an emulated guest keeps more than one busy only at times. */
const GUESTS_AT_A_TIME = 2;
/** Against a guest that hangs. Emulated on a slow or busy machine a file may take many times the minute that it should. */
const TIMEOUT_SECONDS = 1200;

interface GuestTest {
  readonly file: string;
  readonly kernel: string;
}

export async function guestTests(context: Context): Promise<void> {
  const { selection, report, stopped } = context;
  const files = testFiles('vm').filter((file) => selection.wantsFile(file) && wantsAtAll(file, selection));
  if (files.length === 0 || stopped()) return;
  // A line `// needs: other-node` in a test names the script that makes what it uses.
  const needed = [...new Set(files.flatMap((file) => remark(file, 'needs') ?? []))];
  // The downloads, before the clock of any test runs.
  for (const [program, args] of [
    ['scripts/setup', ['vm']],
    ['vm/fetch', selection.kernels],
    ...needed.map((name) => [join('scripts', name), []] as const),
  ] as const) {
    const ran = await runProgram(program, args, context);
    if (stopped()) return;
    if (ran.code !== 0) {
      report.file(program, { passed: 0, skipped: 0, failures: [endingOf(ran)] }, ran.milliseconds, ran.output);
      return;
    }
  }
  const queue = files.flatMap((file) => kernelsOf(file, selection).map((kernel) => ({ file, kernel }))).values();
  const worker = async (): Promise<void> => {
    // Shared by the workers: each takes what is next.
    for (const test of queue) {
      if (stopped()) return;
      await runInGuest(test, context);
    }
  };
  await Promise.all(Array.from({ length: GUESTS_AT_A_TIME }, worker));
}

async function runInGuest({ file, kernel }: GuestTest, context: Context): Promise<void> {
  const { outcome, output, milliseconds } = await runTap(
    'vm/run',
    [
      ...['--kernel', kernel, '--timeout', String(TIMEOUT_SECONDS), ...guestOptions(file)],
      ...[process.execPath, '--test-reporter=tap', `dist/test/${file}`],
    ],
    'points',
    context,
  );
  if (!context.stopped()) context.report.file(`${file} on ${kernel}`, outcome, milliseconds, output);
}

/** A line `// guest: --memory 3G --timeout 400` in a test says what it needs of vm/run. */
function guestOptions(file: string): string[] {
  return remark(file, 'guest')?.split(/\s+/) ?? [];
}

/** A line `// run: full` in a test says that it takes too long for every day: `--full` runs it, or its name. */
function wantsAtAll(file: string, { full, named }: Selection): boolean {
  return full || named || remark(file, 'run') !== 'full';
}

/** A line `// kernels: newest` in a test says that one kernel is enough for every day: little in it depends on which. */
function kernelsOf(file: string, { kernels, full }: Selection): readonly string[] {
  const one = full ? undefined : remark(file, 'kernels');
  return one === undefined || !kernels.includes(one) ? kernels : [one];
}

function remark(file: string, key: string): string | undefined {
  const source = readFileSync(join(root, 'test', file.replace(/\.js$/, '.ts')), 'utf8');
  return new RegExp(`^// ${key}: (.*)$`, 'm').exec(source)?.[1]?.trim();
}
