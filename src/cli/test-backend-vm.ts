import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { realpath } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { SupervisorError, errnoOf, reasonOf } from '../errors.js';
import { packageRoot, programPath } from '../package-root.js';
import { settingText, type Setting } from './common-options.js';
import { CliExit } from './exit-codes.js';

/**
 * Run in the guest: a supervisor loads only what root alone can change, there as here. What the guest changes of
 * this machine's files it alone sees.
 */
const TRUST = `place=$1; shift
while chown 0:0 "$place" && chmod go-w "$place" && [ "$place" != / ]; do place=$(dirname "$place"); done
exec "$@"`;

/** Runs `test-backend --device` in a virtual machine, which a signal ends, and resolves with the exit code. */
export async function testInVirtualMachine(
  module: string,
  settings: readonly Setting[],
  seed: number | undefined,
): Promise<number> {
  const vm = join(packageRoot, 'vm/run');
  if (!existsSync(vm)) {
    throw new SupervisorError(
      `test-backend --vm failed: ${packageRoot} has no virtual machine; use a checkout of ublk-supervisor, or --device`,
      { code: 'NO_UBLK' },
    );
  }
  const path = await realpath(module).catch((error: unknown) => {
    const message = `loading backend ${module} failed: ${reasonOf(error)}`;
    throw new SupervisorError(message, { code: 'BACKEND', errno: errnoOf(error), cause: error });
  });
  const command = [process.execPath, programPath('ublk-supervisor'), 'test-backend', path];
  const seeded = seed === undefined ? [] : ['--seed', String(seed)];
  const child = spawn(
    vm,
    ['sh', '-c', TRUST, 'sh', path, ...command, ...settings.map(settingText), '--device', ...seeded],
    {
      // Of /tmp the guest sees the part only that it is started from.
      cwd: path.startsWith('/tmp/') ? dirname(path) : packageRoot,
      stdio: ['ignore', 'inherit', 'inherit'],
    },
  );
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
  const [code] = (await once(child, 'exit')) as [number | null];
  return code ?? CliExit.failure;
}
