import { Chalk } from 'chalk';
import { Option } from 'commander';
import type { CheckResult } from '../js-backend/conformance/index.js';
import { setting, wholeNumber, type Register, type Setting } from './common-options.js';
import { CliExit } from './exit-codes.js';
import { print, printColoured } from './output.js';

interface TestBackendOptions {
  readonly seed?: number;
  readonly device?: true;
  readonly vm?: true;
}

export const testBackendCommand: Register = (program) => {
  program
    .command('test-backend')
    .description('check that a backend in JavaScript keeps the rules; OVERWRITES what it stores')
    .argument('<module>', "the backend's module, such as ./my-backend.js")
    .argument('[key=value...]', "the backend's options, as with add", setting, [])
    .option('--seed <number>', 'choose the same random operations again', wholeNumber)
    .option('--device', 'through a real block device, whose processes are killed meanwhile; needs ublk and root')
    .addOption(new Option('--vm', "as --device, in the virtual machine of the project's checkout").conflicts('device'))
    .action(async (module: string, settings: readonly Setting[], { seed, device, vm }: TestBackendOptions) => {
      const options = Object.fromEntries(settings);
      if (vm) {
        const { testInVirtualMachine } = await import('./test-backend-vm.js');
        process.exitCode = await testInVirtualMachine(module, settings, seed);
      } else if (device) {
        const { checkOnDevice } = await import('./test-backend-device.js');
        await checkOnDevice(module, options, seed, report);
      } else {
        const { checkBackend } = await import('../js-backend/conformance/index.js');
        await report(checkBackend(module, options, seed === undefined ? {} : { seed }));
      }
    });
};

async function report(results: AsyncIterable<CheckResult>): Promise<void> {
  const counts = { ok: 0, fail: 0, skip: 0 };
  for await (const result of results) {
    counts[result.outcome]++;
    show(result);
  }
  print(`${counts.ok} passed, ${counts.fail} failed, ${counts.skip} skipped`);
  if (counts.fail > 0) process.exitCode = CliExit.failure;
}

function show({ name, outcome, detail }: CheckResult): void {
  const chalk = new Chalk(process.stdout.isTTY ? {} : { level: 0 });
  const colour = { ok: chalk.green, fail: chalk.red, skip: chalk.yellow }[outcome];
  const [first = '', ...others] = detail.split('\n');
  printColoured(colour(outcome.padEnd(4)), `  ${name}${first === '' ? '' : `: ${first}`}`);
  for (const line of others) print(`      ${line}`);
}
