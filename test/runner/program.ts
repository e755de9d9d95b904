import { execa } from 'execa';
import { root, type Context } from './context.js';
import { TapCounter, type Outcome, type Unit } from './tap.js';

export interface Ran {
  /** undefined when a signal ended it. */
  readonly code: number | undefined;
  /** stdout and stderr as they came. */
  readonly output: string;
  readonly milliseconds: number;
}

/** Runs a program from the project's directory, to its end or until the run is stopped; never rejects. */
export async function runProgram(
  file: string,
  args: readonly string[],
  { cancelSignal }: Context,
  onStdout: (text: string) => void = () => undefined,
): Promise<Ran> {
  const began = performance.now();
  const child = execa(file, args, {
    all: true,
    cwd: root,
    cancelSignal,
    // A guest's runner cleans up after itself when it gets SIGTERM, in less than this.
    forceKillAfterDelay: 5_000,
    reject: false,
    stdin: 'ignore',
    stripFinalNewline: false,
  });
  child.stdout.setEncoding('utf8').on('data', onStdout);
  const { exitCode, all, shortMessage } = await child;
  const output = exitCode === undefined ? `${all}${shortMessage ?? ''}\n` : all;
  return { code: exitCode, output, milliseconds: performance.now() - began };
}

/** Runs a program whose stdout is TAP. Whatever way it goes wrong, there is a failure to be counted. */
export async function runTap(
  file: string,
  args: readonly string[],
  unit: Unit,
  context: Context,
): Promise<Ran & { readonly outcome: Outcome }> {
  const counter = new TapCounter(unit);
  const ran = await runProgram(file, args, context, (text) => counter.write(text));
  const outcome = counter.end();
  if (ran.code !== 0 && outcome.failures.length === 0) outcome.failures.push(endingOf(ran));
  return { ...ran, outcome };
}

export function endingOf({ code }: Ran): string {
  return code === undefined ? 'it was killed' : `it ended with exit code ${code}`;
}
