import { close, closeSync } from 'node:fs';
import process from 'node:process';
import { promisify } from 'node:util';
import type { OpenBackend } from '../../backends/interface.js';
import { openBackend } from '../../backends/registry.js';
import { SupervisorError, messageOf } from '../errors.js';
import { becomeIoFlusher, endWithParent } from '../native/addon/system.js';
import { openMessageChannel } from '../native/addon/message-channel.js';
import { parkFiles, parkedFiles } from '../native/addon/files.js';
import {
  packed,
  unpacked,
  type PlainRequest,
  type DescribedStore,
  type StoreAnswer,
  type StoreCall,
  type StoreRequest,
} from './messages.js';

/**
 * The process that opens, checks, resizes and closes the files of all devices, so that a file system which does not answer
 * keeps one of its threads waiting, and not the supervisor. What is asked for in the same moment is done side by side.
 */

interface Done {
  readonly described?: DescribedStore;
  readonly files?: readonly number[];
}

/** The other end of it is the supervisor's. */
const CHANNEL = 3;

/** By store and size: after a change of size both are there until it is closed. */
const stores = new Map<number, Map<number, OpenBackend>>();
const closed = promisify(close);

process.title = 'ublk-stores';
// The supervisor ends us.
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => undefined);
becomeIoFlusher();
// What is stopped would keep its locks from the next supervisor.
endWithParent();

const channel = openMessageChannel(
  CHANNEL,
  (bytes, files) => {
    void answer(unpacked(bytes) as PlainRequest | StoreRequest, files);
  },
  () => {
    // An exit would wait for every thread that waits.
    process.kill(process.pid, 'SIGKILL');
  },
);

async function answer(request: PlainRequest | StoreRequest, files: readonly number[]): Promise<void> {
  const { sequence } = request;
  const [parked] = files;
  const say = (said: Partial<StoreAnswer>, parkedFiles: readonly number[] = []): void =>
    channel.send(packed({ sequence, described: null, error: null, ...said }), parkedFiles);
  try {
    const { described = null, files: opened = [] } = 'call' in request ? await perform(request, parked) : {};
    const sent = opened.length === 0 ? [] : [parkFiles(opened)];
    say({ described }, sent);
    // It is not the last that has them.
    sent.forEach((socket) => closeSync(socket));
  } catch (error) {
    const { code = 'INTERNAL', errno = null, device = null } = error instanceof SupervisorError ? error : {};
    say({ error: { message: messageOf(error), code, errno, device } });
  } finally {
    for (const socket of files) await closed(socket);
  }
}

async function perform(request: StoreRequest, parked: number | undefined): Promise<Done> {
  const { call, store, wanted } = request;
  if (call === 'close') {
    const [backend] = stores.get(store)?.values() ?? [];
    stores.delete(store);
    await backend?.close();
    return {};
  }
  const backend = stores.get(store)?.get(request.inherited?.size ?? -1) ?? (await open(request, parked));
  if (call === 'open') return { described: describe(backend), files: backend.files };
  if (call === 'check') await backend.check?.();
  if (call === 'trim') await backend.trim?.();
  if (call !== 'resize' || wanted === null) return {};
  const resized = await backend.resize?.(wanted);
  return resized === undefined ? {} : { described: describe(keep(store, resized)) };
}

async function open({ store, options, context, inherited }: StoreRequest, parked?: number): Promise<OpenBackend> {
  const files = parked === undefined ? [] : parkedFiles(parked);
  return keep(
    store,
    await openBackend(options, inherited === null ? context : { ...context, inherited: { ...inherited, files } }),
  );
}

function keep(store: number, backend: OpenBackend): OpenBackend {
  const sizes = stores.get(store) ?? new Map<number, OpenBackend>();
  stores.set(store, sizes.set(backend.size, backend));
  return backend;
}

function describe(backend: OpenBackend): DescribedStore {
  const { size, facts, blockSize, choices, identity, warning, created, dataPaths } = backend;
  const calls = (['check', 'resize', 'trim'] as const satisfies readonly StoreCall[]).filter(
    (call) => backend[call] !== undefined,
  );
  return {
    size,
    facts,
    created,
    dataPaths,
    calls,
    ...(blockSize === undefined ? {} : { blockSize }),
    ...(choices === undefined ? {} : { choices }),
    ...(identity === undefined ? {} : { identity }),
    ...(warning === undefined ? {} : { warning }),
  };
}
