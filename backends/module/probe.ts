import { spawn } from 'node:child_process';
import type { Duplex } from 'node:stream';
import { SupervisorError } from '../../src/errors.js';
import type { User } from '../../src/native/binding.js';
import { programPath } from '../../src/package-root.js';
import { onFrames, sendFrame } from '../../src/queue-proc/frames.js';
import {
  queueMessage,
  type LoadedMessage,
  type OpenedMessage,
  type QueueMessage,
} from '../../src/queue-proc/message-schema.js';
import { HEAP_FULL, LONGEST_TEXT, type LoadMessage } from '../../src/queue-proc/messages.js';

const PROGRAM = programPath('queue-proc');
/** For loading the module, opening and closing it. */
const DEADLINE_MS = 60_000;

/**
 * Opens a backend in a process of its own to learn what a device of it announces, which the kernel wants to know before
 * there is any queue process. It runs as they will, with `sharedMemory`, a file. Rejects with `BACKEND`.
 */
export function probe(load: LoadMessage, sharedMemory: number, user: User | undefined): Promise<OpenedMessage> {
  return ask(load, 'opened', sharedMemory, user);
}

/** Loads a backend in such a process and has its options checked. Rejects with `BACKEND`. */
export function tryLoading(load: LoadMessage, user: User | undefined): Promise<LoadedMessage> {
  return ask({ ...load, loadOnly: true }, 'loaded', 'ignore', user);
}

async function ask<Type extends QueueMessage['type']>(
  load: LoadMessage,
  wanted: Type,
  sharedMemory: number | 'ignore',
  user: User | undefined,
): Promise<Extract<QueueMessage, { readonly type: Type }>> {
  const step = wanted === 'loaded' ? 'loading' : 'opening';
  const refused = (reason: string, cause?: unknown): SupervisorError =>
    new SupervisorError(`${step} backend ${load.module} failed: ${reason}`, { code: 'BACKEND', cause });
  const child = spawn(process.execPath, [PROGRAM, ...(user ? [String(user.uid), String(user.gid)] : [])], {
    stdio: ['ignore', 'ignore', 'pipe', 'pipe', sharedMemory],
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
    child.once('close', (code, signal) => {
      resolve(signal === null ? `exited with code ${String(code)}` : `was killed by ${signal}`);
    });
  }).catch((error: unknown) => {
    throw refused('its process could not be started', error);
  });
  const answer = answers.find((one): one is Extract<QueueMessage, { readonly type: Type }> => one.type === wanted);
  if (answer) return answer;
  const ending = answers.find((one) => one.type === 'ending');
  if (!ending && child.killed) throw refused(`it was not done within ${String(DEADLINE_MS / 1000)} s`);
  if (!ending && printed.includes(HEAP_FULL)) throw refused('its JavaScript heap was full');
  if (!ending) {
    const last = printed.trim().split('\n').at(-1) ?? '';
    throw refused(`the process that tried it ${ended}${last === '' ? '' : `: ${last}`}`);
  }
  throw new SupervisorError(ending.message, { code: 'BACKEND', cause: ending.stack });
}
