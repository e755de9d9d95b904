import { Chalk } from 'chalk';
import type { CheckResult } from '../backend/conformance/index.js';
import { printable } from '../printable.js';
import { setting, wholeNumber, type Register, type Setting } from './common-options.js';
import { CliExit } from './exit-codes.js';
import { print } from './output.js';

export const testBackendCommand: Register = (program) => {
  program
    .command('test-backend')
    .description('check that a backend in JavaScript keeps the rules; needs no ublk, and OVERWRITES what it stores')
    .argument('<module>', "the backend's module, such as ./my-backend.js")
    .argument('[key=value...]', "the backend's options; numbers, true and false are given to it as such", setting, [])
    .option('--seed <number>', 'choose the same random operations again', wholeNumber)
    .action(async (module: string, settings: readonly Setting[], options: { readonly seed?: number }) => {
      const { checkBackend } = await import('../backend/conformance/index.js');
      const counts = { ok: 0, fail: 0, skip: 0 };
      for await (const result of checkBackend(module, Object.fromEntries(settings), options)) {
        counts[result.outcome]++;
        print(format(result));
      }
      print(`${String(counts.ok)} passed, ${String(counts.fail)} failed, ${String(counts.skip)} skipped`);
      if (counts.fail > 0) process.exitCode = CliExit.failure;
    });
};

function format({ name, outcome, detail }: CheckResult): string {
  const chalk = new Chalk(process.stdout.isTTY ? {} : { level: 0 });
  const colour = { ok: chalk.green, fail: chalk.red, skip: chalk.yellow }[outcome];
  const [first = '', ...others] = detail.split('\n').map(printable);
  const lines = [`${name}${first === '' ? '' : `: ${first}`}`, ...others.map((line) => `      ${line}`)];
  return `${colour(outcome.padEnd(4))}  ${lines.join('\n')}`;
}
