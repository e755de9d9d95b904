import { Chalk } from 'chalk';
import { thisHost } from '../supervisor/host/host.js';
import { preflightChecks, runChecks, type CheckStatus } from '../supervisor/host/preflight.js';
import { runtimeDirectory } from '../api/places.js';
import type { DeviceStatus } from '../api/status.js';
import { createClient } from '../api/client.js';
import { runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';
import { deviceLimitCheck, devicesCheck, memlockCheck, runtimeDirCheck } from './doctor-checks.js';
import { sharedMemoryCheck, swapCheck } from './doctor-checks.js';
import { CliExit } from './exit-codes.js';
import { printColoured, printJson } from './output.js';

interface DoctorOptions extends RuntimeDirOption {
  readonly json?: true;
}

export const doctorCommand: Register = (program) => {
  program
    .command('doctor')
    .description('check whether this machine can serve ublk devices, and say what to do if not')
    .option('-J, --json', 'one JSON document')
    .addOption(runtimeDirOption())
    .action(async (options: DoctorOptions) => {
      const runtimeDir = runtimeDirectory(options.runtimeDir);
      const devices = await ownDevices(runtimeDir);
      const checks = [
        ...preflightChecks,
        memlockCheck,
        sharedMemoryCheck,
        runtimeDirCheck(runtimeDir),
        deviceLimitCheck,
        devicesCheck(devices && new Set(devices.flatMap(({ id }) => id ?? []))),
        swapCheck(devices ?? []),
      ];
      const results = runChecks(checks, thisHost);
      if (options.json) {
        printJson({ checks: results.map(({ id, status, detail, advice = null }) => ({ id, status, detail, advice })) });
      } else {
        for (const { status, subject, detail, advice } of results) {
          const line = `${subject}: ${detail}${advice === undefined ? '' : `; ${advice}`}`;
          printColoured(coloured(status), `  ${line}`);
        }
      }
      if (results.some(({ status }) => status === 'fail')) process.exitCode = CliExit.failure;
    });
};

/** undefined: no supervisor answers. */
async function ownDevices(runtimeDir: string): Promise<readonly DeviceStatus[] | undefined> {
  try {
    return (await createClient(runtimeDir).status()).devices;
  } catch {
    return undefined;
  }
}

function coloured(status: CheckStatus): string {
  const chalk = new Chalk(process.stdout.isTTY ? {} : { level: 0 });
  const colour = { ok: chalk.green, warn: chalk.yellow, fail: chalk.red }[status];
  return colour(status.padEnd(4));
}
