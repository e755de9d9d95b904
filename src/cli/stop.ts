import { readFileSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SupervisorError } from '../errors.js';
import { lockFile, runtimeDirectory } from '../api/places.js';
import { createClient, type Client } from '../api/client.js';
import { runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

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
      const runtimeDir = runtimeDirectory(options.runtimeDir);
      const client = createClient(runtimeDir);
      const force = options.force ?? false;
      if (name === undefined) await stopAll(client, runtimeDir, force);
      else await client.remove(name, { force, removeData: false });
    });
};

/** Returns when the supervisor has let go of its directory, so that the next command may be `start`. */
async function stopAll(client: Client, runtimeDir: string, force: boolean): Promise<void> {
  const { pid } = (await client.status()).supervisor;
  await client.stop({ force });
  const lock = lockFile(runtimeDir);
  const deadline = Date.now() + END_DEADLINE_MS;
  while (holdsLock(pid, lock) && Date.now() < deadline) await sleep(END_POLL_MS);
  if (holdsLock(pid, lock)) {
    throw new SupervisorError(`all devices are stopped, but the supervisor (pid ${pid}) does not end; see its log`, {
      code: 'TIMEOUT',
    });
  }
}

/**
 * Its process need not end: a program that serves has more to do. Asked of the kernel's list, since taking the lock to
 * find out could make a supervisor that starts just now fail.
 */
function holdsLock(pid: number, path: string): boolean {
  const file = statSync(path, { throwIfNoEntry: false });
  if (!file) return false;
  const entry = new RegExp(`FLOCK .* ${pid} [0-9a-f]+:[0-9a-f]+:${file.ino} `);
  return entry.test(readFileSync('/proc/locks', 'utf8'));
}
