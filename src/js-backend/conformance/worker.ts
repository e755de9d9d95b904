import { resolve } from 'node:path';
import { inspect } from 'node:util';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { messageOf, reasonOf } from '../../errors.js';
import { printable } from '../../printable.js';
import type { BackendInput } from '../../../backends/interface.js';
import type { BackendContext, BackendInstance } from '../define.js';
import { asAsked, lowerInstance } from '../lower.js';
import { announcedBy, assertSharedMemory, loadBackend, openInstance } from '../load.js';
import { withFrames } from './frames.js';
import {
  SETTLED,
  UNFILLED,
  describeCall,
  type Call,
  type FromWorker,
  type MemoryRequest,
  type ToWorker,
  type WorkerOptions,
} from './messages.js';
import type { GivenLower } from './shared-lower.js';

/** A worker thread that stands for a queue process: its modules, and so its instance, are its own. */

const { module, options, queue, queues, memory, answered } = workerData as WorkerOptions;
const draining = new AbortController();
let lastWish = 0;
/** These buffers must not be touched any more. */
const settled: { readonly call: Call; readonly buffer: Buffer }[] = [];

try {
  const definition = await loadBackend(module);
  const { maxQueues = queues } = definition;
  const instance = await openInstance(definition, options, contextOf(Math.min(queues, maxQueues)));
  parentPort?.on('message', (message: ToWorker) => {
    if (message.type === 'drain') draining.abort();
    else if (message.type === 'inspect') tell({ type: 'settled', id: message.id, ...intrusion() });
    else if (message.type === 'call') void serve(instance, message.id, message.call);
  });
  tell({ type: 'opened', announced: announcedBy(definition, instance) });
} catch (error) {
  tell({ type: 'refused', reason: withFrames(messageOf(error), error) });
}

function contextOf(queues: number): BackendContext {
  const context: BackendContext = {
    device: 'test',
    queue,
    queues,
    log: { info: say('info'), warn: say('warn'), error: say('error') },
    signal: draining.signal,
    resolve: (path) => resolve(path),
    sharedMemory,
    open: async (backend) => {
      const { lower, files, place } = await given(backend);
      return await lowerInstance(lower, files, place, context);
    },
  };
  return context;
}

/** The suite opens what an instance has below it, too. */
function given(backend: BackendInput): Promise<GivenLower> {
  const id = ++lastWish;
  tell({ type: 'wants', id, asked: asAsked(backend) });
  return new Promise((resolve, reject) => {
    const onMessage = (message: ToWorker): void => {
      if ((message.type !== 'lower' && message.type !== 'no-lower') || message.id !== id) return;
      parentPort?.off('message', onMessage);
      if (message.type === 'lower') resolve(message);
      else reject(new Error(message.reason));
    };
    parentPort?.on('message', onMessage);
  });
}

function tell(message: FromWorker): void {
  parentPort?.postMessage(message);
}

function say(level: string): (message: string) => void {
  return (message) => void process.stderr.write(`queue ${queue}: ${level}: ${printable(message)}\n`);
}

/** The suite has the memory, which outlives this thread. */
function sharedMemory(name: string, size: number): Buffer {
  assertSharedMemory(name, size);
  Atomics.store(answered, 0, 0);
  memory.postMessage({ name, size } satisfies MemoryRequest);
  Atomics.wait(answered, 0, 0);
  const { message: shared } = receiveMessageOnPort(memory) as { readonly message: SharedArrayBuffer };
  if (shared.byteLength === size) return Buffer.from(shared);
  throw new RangeError(`sharedMemory ${name}: size ${size}; another instance asked for ${shared.byteLength} bytes`);
}

async function serve(instance: BackendInstance, id: number, call: Call): Promise<void> {
  const buffer = bufferOf(call);
  try {
    const answer: unknown = await perform(instance, call, buffer);
    if (buffer && answer !== buffer.length) {
      tell({ type: 'settled', id, fault: `answered ${inspect(answer)}; expected ${buffer.length}` });
    } else {
      tell({ type: 'settled', id, ...(call.method === 'read' && buffer ? { data: buffer } : {}) });
    }
  } catch (error) {
    tell({ type: 'settled', id, fault: `failed: ${failureOf(error)}` });
  }
  if (buffer) settled.push({ call, buffer: buffer.fill(SETTLED) });
}

function bufferOf(call: Call): Buffer | undefined {
  if (call.method === 'read') return Buffer.alloc(call.length, UNFILLED);
  return call.method === 'write' ? Buffer.from(call.data) : undefined;
}

function perform(instance: BackendInstance, call: Call, buffer: Buffer = Buffer.alloc(0)): unknown {
  switch (call.method) {
    case 'read':
      return instance.read(buffer, call.offset);
    case 'write':
      return instance.write?.(buffer, call.offset, { fua: call.fua });
    case 'discard':
      return instance.discard?.(call.offset, call.length);
    case 'writeZeroes':
      return instance.writeZeroes?.(call.offset, call.length, { mayUnmap: call.mayUnmap });
    case 'flush':
      return instance.flush?.();
    case 'close':
      return instance.close?.();
  }
}

/** What was thrown, with the code by which a client would know it. */
function failureOf(error: unknown): string {
  const reason = reasonOf(error);
  const code: unknown = error instanceof Error && 'code' in error ? error.code : undefined;
  const named = typeof code === 'string' && !reason.includes(code) ? `${reason} (${code})` : reason;
  return withFrames(named, error);
}

function intrusion(): { readonly fault?: string } {
  const changed = settled.find(({ buffer }) => !buffer.equals(Buffer.alloc(buffer.length, SETTLED)));
  settled.length = 0;
  return changed ? { fault: `the buffer of a ${describeCall(changed.call)} changed after the call had settled` } : {};
}
