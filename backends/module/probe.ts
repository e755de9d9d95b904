import { spawn } from 'node:child_process';
import type { Duplex } from 'node:stream';
import { SupervisorError } from '../../src/errors.js';
import type { User } from '../../src/native/addon/accounts.js';
import { programPath } from '../../src/package-root.js';
import { onFrames, sendFrame } from '../../src/channel/frames.js';
import {
  queueMessage,
  type LoadedMessage,
  type OpenedMessage,
  type QueueMessage,
  type WantsMessage,
} from '../../src/channel/message-schema.js';
import { HEAP_FULL, LONGEST_TEXT, type LoadMessage } from '../../src/channel/messages.js';

const PROGRAM = programPath('queue-proc');
/** For loading the module, opening and closing it. */
const DEADLINE_MS = 60_000;

/**
 * Opens a backend in a process of its own to learn what a device of it announces, which the kernel wants to know before
 * there is any queue process, or what it wants below it, which it is then to be given. It runs as they will, with their `files`.
 * Rejects with `BACKEND`.
 */
export async function probe(
  load: LoadMessage,
  files: readonly number[],
  user: User | undefined,
): Promise<OpenedMessage | WantsMessage> {
  return ask(load, 'opening', files, user, (answer) => answer.type === 'opened' || answer.type === 'wants');
}

/** Loads a backend in such a process and has its options checked. Rejects with `BACKEND`. */
export function tryLoading(load: Omit<LoadMessage, 'lower'>, user: User | undefined): Promise<LoadedMessage> {
  return ask({ ...load, lower: [], loadOnly: true }, 'loading', [], user, (answer) => answer.type === 'loaded');
}

async function ask<Wanted extends QueueMessage>(
  load: LoadMessage,
  step: string,
  files: readonly number[],
  user: User | undefined,
  isWanted: (answer: QueueMessage) => answer is Wanted,
): Promise<Wanted> {
  const refused = (reason: string, cause?: unknown): SupervisorError =>
    new SupervisorError(`${step} backend ${load.module} failed: ${reason}`, { code: 'BACKEND', cause });
  const child = spawn(process.execPath, [PROGRAM, ...(user ? [String(user.uid), String(user.gid)] : [])], {
    stdio: ['ignore', 'ignore', 'pipe', 'pipe', ...files],
    env: {},
    cwd: '/',
    detached: true,
    timeout: DEADLINE_MS,
    killSignal: 'SIGKILL',
  });
  let printed = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    printed = (printed + text).slice(-LONGEST_TEXT);
  });
  const answers: QueueMessage[] = [];
  const channel = child.stdio[3] as Duplex;
  channel.on('error', () => undefined);
  onFrames(channel, (message) => answers.push(queueMessage.parse(message)));
  sendFrame(channel, load);
  const ended = await new Promise<string>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) =>
      resolve(signal === null ? `exited with code ${String(code)}` : `was killed by ${signal}`),
    );
  }).catch((error: unknown) => {
    throw refused('its process could not be started', error);
  });
  const answer = answers.find(isWanted);
  if (answer) return answer;
  const ending = answers.find((one) => one.type === 'ending');
  if (!ending && child.killed) throw refused(`it was not done within ${DEADLINE_MS / 1000} s`);
  if (!ending && printed.includes(HEAP_FULL)) throw refused('its JavaScript heap was full');
  if (!ending) {
    const last = printed.trim().split('\n').at(-1) ?? '';
    throw refused(`the process that tried it ${ended}${last === '' ? '' : `: ${last}`}`);
  }
  throw new SupervisorError(ending.message, { code: 'BACKEND', cause: ending.stack });
}
