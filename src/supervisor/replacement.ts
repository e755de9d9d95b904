import { execFile } from 'node:child_process';
import process from 'node:process';
import { promisify } from 'node:util';
import { SupervisorError, messageOf } from '../errors.js';
import { replaceProcess } from '../native/addon/system.js';

/** For a node to start and to read a configuration; on a busy machine that takes a while. */
const CHECK_DEADLINE_MS = 300_000;

/** This program as it is installed now, which need not be what this process runs. */
const program = (): readonly string[] => [...process.execArgv, process.argv[1] ?? ''];

/** Rejects with `REFUSED` when the program that is installed now does not start, or not with this configuration. */
export async function assertReplaceable(configPath: string): Promise<void> {
  try {
    const options = { timeout: CHECK_DEADLINE_MS, killSignal: 'SIGKILL' } as const;
    // A device whose file or module is missing now is adopted as it is.
    const check = ['check', '--configuration-only', configPath];
    await promisify(execFile)(process.execPath, [...program(), ...check], options);
  } catch (error) {
    const { stderr = '' } = error as { readonly stderr?: string };
    const reason = stderr.trim().split('\n').at(-1) ?? '';
    throw new SupervisorError(
      `upgrading the supervisor failed: what is installed now refuses ${configPath}: ${reason || messageOf(error)}`,
      { code: 'REFUSED', cause: error },
    );
  }
}

/**
 * Ends this process as a supervisor that is killed ends, and begins it again with the program that is installed now; its
 * pid, standard streams and arguments stay. Throws when that is not possible. `environment`: added to ours.
 */
export function replaceSelf(environment: Readonly<Record<string, string>>): never {
  // Node has taken the channel to a parent out of the environment. One that has closed since must not be named there.
  const { fd = -1 } = (process.channel ?? {}) as { readonly fd?: number };
  const channel = fd < 0 ? {} : { NODE_CHANNEL_FD: String(fd) };
  const all: NodeJS.ProcessEnv = { ...process.env, ...environment, ...channel };
  const variables = Object.entries(all).map(([name, value = '']) => `${name}=${value}`);
  const argv = [process.argv0, ...program(), ...process.argv.slice(2)];
  return replaceProcess(process.execPath, argv, variables, fd);
}
