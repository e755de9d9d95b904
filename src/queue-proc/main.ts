import { closeSync } from 'node:fs';
import { Socket } from 'node:net';
import { resolve } from 'node:path';
import process from 'node:process';
import { announcedBy, checkOptions, loadBackend, openInstance } from '../js-backend/load.js';
import { asAsked, lowerInstance, takeLower } from '../js-backend/lower.js';
import type { BackendInput, LowerBackend } from '../../backends/interface.js';
import type { BackendContext, BackendDefinition, BackendInstance } from '../js-backend/define.js';
import { messageOf } from '../errors.js';
import { dropPrivileges, inheritedQueue, inheritQueue } from '../native/addon/js-queue.js';
import { parkedFiles } from '../native/addon/files.js';
import type { InheritedQueue } from '../native/addon/js-queue.js';
import type { RequestIdentity } from '../native/request.js';
import type { User } from '../native/addon/accounts.js';
import { Dispatcher } from './dispatch.js';
import { onFrames, sendFrame } from '../channel/frames.js';
import type { QueueMessage } from '../channel/message-schema.js';
import { EXIT_UNLOADABLE, LONGEST_TEXT, type LoadMessage } from '../channel/messages.js';
import { PrintedLines } from '../channel/printed-lines.js';
import { sharedMemory } from './shared-memory.js';

/**
 * A process with a backend in JavaScript. Forked by the zygote it has a queue, without privileges, and serves it. Started
 * by itself it is a probe: it loads the backend, opens it, says what a device of it announces, and ends.
 */

/** The descriptors of a probe; a queue process is told its own. */
const PROBE_CHANNEL = 3;
const PROBE_FIRST_FILE = 4;

const inherited = inheritedQueue();
if (inherited) process.title = `ublk/${inherited.deviceId}/${inherited.queue}`;
// `check` is for everybody; who is not root has none.
else if (process.geteuid?.() === 0) dropPrivileges(probeUser());

const channel = new Socket({ fd: inherited?.channel ?? PROBE_CHANNEL, readable: true, writable: true });
// Queue processes outlive a supervisor that was killed.
channel.on('error', () => undefined);
if (!inherited) channel.on('close', () => process.exit());
// Terminals and process managers signal whole groups; only the supervisor ends a queue process.
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined);
// The log shows it. Node would write it to standard error as it is, with whatever its message holds.
process.on('uncaughtException', (error) => {
  tell({ type: 'ending', ...described(error) });
  process.exit(1);
});
for (const [stream, level] of [
  ['stdout', 'info'],
  ['stderr', 'warn'],
] as const) {
  const toLog = new PrintedLines(LONGEST_TEXT, (message) => tell({ type: 'log', level, message }));
  Object.defineProperty(process, stream, { value: toLog, configurable: true });
}
const draining = new AbortController();

onFrames(channel, (message) => {
  void load(message as LoadMessage);
});

/** The user that a probe becomes, from its arguments. */
function probeUser(): User | undefined {
  const [uid, gid] = process.argv.slice(2).map(Number);
  return uid === undefined || gid === undefined ? undefined : { uid, gid };
}

async function load({ device, module, options, directory, lower, loadOnly }: LoadMessage): Promise<void> {
  const [memory = -1, ...sockets] =
    inherited?.files ?? [0, ...lower.filter(hasFiles)].map((_, index) => PROBE_FIRST_FILE + index);
  const say = (level: 'info' | 'warn' | 'error') => (message: string) =>
    tell({ type: 'log', level, message: clipped(message) });
  const given = new Set<number>();
  const context: BackendContext = {
    device,
    queue: inherited?.queue ?? 0,
    queues: inherited?.queues ?? 1,
    log: { info: say('info'), warn: say('warn'), error: say('error') },
    signal: draining.signal,
    resolve: (path) => resolve(directory, path),
    sharedMemory: (name, size) => sharedMemory(memory, name, size),
    open: async (backend) => {
      const asked = asAsked(backend);
      const place = takeLower(lower, asked, given);
      const one = lower[place];
      if (one === undefined) return await missing(asked);
      return await lowerInstance(one, takeFiles(sockets[lower.filter(hasFiles).indexOf(one)]), place, context);
    },
  };
  try {
    const definition = await loadBackend(module);
    if (loadOnly === true) {
      checkOptions(definition, options);
      endProbe({ type: 'loaded', maxQueues: definition.maxQueues ?? null });
      return;
    }
    const instance = await openInstance(definition, options, context);
    if (inherited) serve(instance, inherited);
    else await probe(definition, instance);
  } catch (error) {
    tell({ type: 'ending', ...described(error) });
    process.exit(EXIT_UNLOADABLE);
  }
}

const hasFiles = ({ store }: LowerBackend): boolean => store.kind === 'native' && store.parked;

/** Takes the parked files and closes the socket: a process that serves must not reach what is parked there. */
function takeFiles(socket: number | undefined): readonly number[] {
  if (socket === undefined) return [];
  const files = parkedFiles(socket);
  closeSync(socket);
  return files;
}

/** A probe says what it lacks and ends; another one, which has it, gets farther. */
function missing(asked: BackendInput): Promise<never> {
  if (inherited) {
    const message = `opening ${JSON.stringify(asked)} failed: the device was made without it; open the same in every instance`;
    return Promise.reject(new Error(message));
  }
  endProbe({ type: 'wants', asked });
  return new Promise(() => undefined);
}

async function probe(definition: BackendDefinition, instance: BackendInstance): Promise<void> {
  const announced = announcedBy(definition, instance);
  draining.abort();
  await instance.close?.();
  endProbe({ type: 'opened', ...announced });
}

function endProbe(found: QueueMessage): void {
  tell(found);
  channel.end();
}

function serve(instance: BackendInstance, { depth, size }: InheritedQueue): void {
  if (instance.size !== size) {
    throw new RangeError(`the backend's size is ${instance.size}, the device's ${size} bytes`);
  }
  const queue = inheritQueue({
    onBatch: (count) => dispatcher.batch(count),
    onDrain: () => draining.abort(),
    onEnd: () => {
      draining.abort();
      void end(instance);
    },
  });
  const dispatcher = new Dispatcher({ instance, queue, depth, onError: reportError });
  queue.start();
  // From now on the queue keeps the process.
  channel.unref();
}

async function end(instance: BackendInstance): Promise<void> {
  await instance.close?.();
  process.exit(0);
}

const ERROR_INTERVAL_MS = 1000;
let errors = 0;
let lastReport = -Infinity;

/** A backend that fails every request must not drown the supervisor in messages. */
function reportError(error: unknown, request: RequestIdentity): void {
  errors++;
  const now = performance.now();
  if (now - lastReport < ERROR_INTERVAL_MS) return;
  tell({ type: 'error', ...described(error), count: errors, request });
  lastReport = now;
  errors = 0;
}

/** How many bytes of messages wait for the supervisor. The last words of a process fit in any case. */
const MOST_UNREAD_BYTES = 2 ** 20;

function tell(message: QueueMessage): void {
  const lost = message.type === 'log' && channel.writableLength > MOST_UNREAD_BYTES;
  if (channel.writable && !lost) sendFrame(channel, message);
}

function described(error: unknown): { message: string; stack: string } {
  const name = error instanceof Error && error.name !== 'SupervisorError' ? `${error.name}: ` : '';
  const stack = error instanceof Error ? (error.stack ?? '') : '';
  return { message: clipped(name + messageOf(error)), stack: clipped(stack) };
}

function clipped(text: string): string {
  return text.slice(0, LONGEST_TEXT);
}
