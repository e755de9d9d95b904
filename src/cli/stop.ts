import { setTimeout as sleep } from 'node:timers/promises';
import { SupervisorError } from '../errors.js';
import type { Client } from './client.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

interface StopOptions extends RuntimeDirOption {
  readonly force?: true;
}

const END_POLL_MS = 20;
const END_DEADLINE_MS = 15_000;

export const stopCommand: Register = (program) => {
  program
    .command('stop')
    .description('take a device away and keep its data; without a name, stop the supervisor and all its devices')
    .argument('[name]', 'the device')
    .option('--force', 'even if it is open or mounted')
    .addOption(runtimeDirOption())
    .action(async (name: string | undefined, options: StopOptions) => {
      const client = clientOf(options);
      const force = options.force ?? false;
      if (name === undefined) await stopAll(client, force);
      else await client.remove(name, { force, removeData: false });
    });
};

/** Returns when the supervisor's process has ended, so that the next command may be `start`. */
async function stopAll(client: Client, force: boolean): Promise<void> {
  const { pid } = (await client.status()).supervisor;
  await client.stop({ force });
  const deadline = Date.now() + END_DEADLINE_MS;
  while (isRunning(pid) && Date.now() < deadline) await sleep(END_POLL_MS);
  if (isRunning(pid)) {
    throw new SupervisorError(
      `all devices are stopped, but the supervisor (pid ${String(pid)}) does not end; see its log`,
      {
        code: 'TIMEOUT',
      },
    );
  }
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}
