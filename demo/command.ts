import { execa } from 'execa';

/** Something that the demonstration cannot go on after, in one line for a person. */
export class DemoError extends Error {}

export interface CommandOptions {
  readonly timeoutMs?: number;
  readonly cancelSignal?: AbortSignal;
}

/**
 * Runs a command that has to succeed; resolves with its stdout. In a process group of its own: a Ctrl-C is for the
 * demonstration, which then ends its commands in the right order.
 */
export async function command(
  file: string,
  args: readonly string[],
  { timeoutMs = 60_000, cancelSignal }: CommandOptions = {},
): Promise<string> {
  const { exitCode, stdout, stderr, shortMessage, failed } = await execa(file, args, {
    detached: true,
    reject: false,
    stdin: 'ignore',
    timeout: timeoutMs,
    // What waits for a device that nobody serves ends no other way, and even so only when the device is gone.
    killSignal: 'SIGKILL',
    ...(cancelSignal ? { cancelSignal } : {}),
  });
  if (!failed) return stdout;
  const said = (stderr === '' ? stdout : stderr).trim().split('\n').slice(0, 3).join('; ');
  throw new DemoError(
    exitCode === undefined ? (shortMessage ?? `${file} failed`) : `${file} ended with ${exitCode}: ${said}`,
  );
}
