import { setTimeout } from 'node:timers/promises';
import { SupervisorError } from '../errors.js';
import type { Client } from '../api/client.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

interface UpgradeOptions extends RuntimeDirOption {
  readonly self?: true;
}

const SUCCESSOR_POLL_MS = 50;
/** Between two questions, of the time that one takes: the status of hundreds of devices costs whoever is adopting them a second. */
const SUCCESSOR_REST = 4;
/** For a supervisor to start, and then to take over one more device; hundreds of them take a while on a busy machine. */
const SUCCESSOR_DEADLINE_MS = 300_000;
/** Codes of a question that the one did not answer any more, and the other not yet. */
const IN_BETWEEN: ReadonlySet<string> = new Set(['NOT_RUNNING', 'ECONNRESET', 'EPIPE']);

export const upgradeCommand: Register = (program) => {
  program
    .command('upgrade')
    .description('hand all devices over to what is installed now, with a pause for their users')
    .option('--self', 'let the supervisor, instead, go on as what is installed now; nobody notices')
    .addOption(runtimeDirOption())
    .action(async (options: UpgradeOptions) => {
      const client = clientOf(options);
      const names = options.self ? (await client.status()).devices.map(({ name }) => name) : [];
      await client.upgrade({ self: options.self ?? false });
      if (options.self) await untilAdopted(client, names);
    });
};

/** The supervisor that answered does not listen any more. */
async function untilAdopted(client: Client, names: readonly string[]): Promise<void> {
  let deadline = performance.now() + SUCCESSOR_DEADLINE_MS;
  let missing = names.length;
  for (;;) {
    const asked = performance.now();
    try {
      const { devices } = await client.status();
      const adopted = devices.filter(({ state }) => state !== 'adopting').map(({ name }) => name);
      const left = names.filter((name) => !adopted.includes(name)).length;
      if (left === 0) return;
      if (left < missing) deadline = performance.now() + SUCCESSOR_DEADLINE_MS;
      missing = left;
    } catch (error) {
      if (!(error instanceof SupervisorError && IN_BETWEEN.has(error.code))) throw error;
    }
    if (performance.now() > deadline) {
      const message =
        'upgrading the supervisor failed: its successor does not serve every device; see its log and status';
      throw new SupervisorError(message, { code: 'TIMEOUT' });
    }
    await setTimeout(Math.max(SUCCESSOR_POLL_MS, SUCCESSOR_REST * (performance.now() - asked)));
  }
}
