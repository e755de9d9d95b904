import { setTimeout } from 'node:timers/promises';
import { SupervisorError } from '../errors.js';
import type { Client } from './client.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';

interface UpgradeOptions extends RuntimeDirOption {
  readonly self?: true;
}

const SUCCESSOR_POLL_MS = 50;
/** For a supervisor to start and to recover what has to be; on a busy machine that takes a while. */
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
  const deadline = performance.now() + SUCCESSOR_DEADLINE_MS;
  for (;;) {
    try {
      const { devices } = await client.status();
      const adopted = devices.filter(({ state }) => state !== 'adopting').map(({ name }) => name);
      if (names.every((name) => adopted.includes(name))) return;
    } catch (error) {
      if (!(error instanceof SupervisorError && IN_BETWEEN.has(error.code))) throw error;
    }
    if (performance.now() > deadline) {
      const message =
        'upgrading the supervisor failed: its successor does not serve every device; see its log and status';
      throw new SupervisorError(message, { code: 'TIMEOUT' });
    }
    await setTimeout(SUCCESSOR_POLL_MS);
  }
}
