import { closeSync } from 'node:fs';
import type { LeftBackend, OpenBackend, OpenContext } from '../../../backends/interface.js';
import { mayHang, openBackend, type BackendOptions } from '../../../backends/registry.js';
import { lowerOpener } from '../../js-backend/open-lower.js';
import { SupervisorError } from '../../errors.js';
import { parkFiles, parkedFiles } from '../../native/addon/files.js';
import type { DescribedStore, StoreCall, StoreRequest } from '../../store-proc/messages.js';
import { StoreProcess, type Performed } from './store-process.js';

/** What a store needs to be opened again by a process that did not open it. */
type Opening = Pick<StoreRequest, 'store' | 'options' | 'context' | 'inherited'>;

/**
 * Opens backends. What lies in a file system that may not answer is opened by a process of its own, so that the supervisor
 * neither waits for it nor has such a file open, which it could not close. The files of every native backend are parked in a
 * socket, which is all that supervisor and zygote have of them.
 */
export class Stores {
  #process: StoreProcess | null = null;
  #lastStore = 0;
  #ended = false;

  async open(options: BackendOptions, context: OpenContext): Promise<OpenBackend> {
    if (!mayHang(options)) return openHere(options, { ...context, openLower: lowerOpener(this.open.bind(this)) });
    const { inherited, ...rest } = context;
    const known = inherited === undefined ? null : withoutFiles(inherited);
    this.#lastStore += 1;
    const opening = { store: this.#lastStore, options, context: rest, inherited: known };
    const { described, parked } = await this.#perform('open', opening, inherited?.files ?? []);
    if (described === null) throw new TypeError('a store was opened and not described');
    return this.#opened(described, parked === null ? [] : [parked], opening);
  }

  letGo(options: BackendOptions, files: readonly number[]): void {
    if (files.length === 0) return;
    if (mayHang(options) && !this.#ended) this.#running().letGo(files);
    else for (const socket of files) closeSync(socket);
  }

  /** Ends what opens stores. Those that are open have been closed, or are a successor's. */
  async close(): Promise<void> {
    this.#ended = true;
    await this.#process?.close();
  }

  #opened(described: DescribedStore, files: readonly number[], opening: Opening): OpenBackend {
    const { calls, ...known } = described;
    const { size, facts, identity, blockSize = null } = known;
    const current = { ...opening, inherited: { size, blockSize, announced: { size, facts, identity, blockSize } } };
    const perform = async (call: StoreCall, wanted: number | null = null): Promise<Performed> =>
      this.#perform(call, current, files, wanted);
    const done = async (call: StoreCall): Promise<void> => {
      await perform(call);
    };
    return {
      ...known,
      files,
      ...(calls.includes('check') ? { check: () => done('check') } : {}),
      ...(calls.includes('trim') ? { trim: () => done('trim') } : {}),
      ...(calls.includes('resize')
        ? {
            resize: async (wanted: number): Promise<OpenBackend> => {
              const { described: resized } = await perform('resize', wanted);
              if (resized === null) throw new TypeError('a store was resized and not described');
              return this.#opened(resized, files, opening);
            },
          }
        : {}),
      close: async () => {
        try {
          await done('close');
        } finally {
          this.letGo(opening.options, files);
        }
      },
      remove: () => Promise.resolve(),
    };
  }

  /** If the store process ends meanwhile, another one gets the call: each call can be made twice. */
  async #perform(
    call: StoreCall,
    opening: Opening,
    files: readonly number[],
    wanted: number | null = null,
  ): Promise<Performed> {
    const request = { ...opening, call, wanted };
    try {
      return await this.#running().perform(request, files);
    } catch (error) {
      if (!(error instanceof SupervisorError) || error.code !== 'LOST') throw error;
      return await this.#running().perform(request, files);
    }
  }

  #running(): StoreProcess {
    if (this.#ended)
      throw new SupervisorError('opening a store failed: the supervisor has ended', { code: 'STOPPING' });
    if (this.#process?.alive !== true) this.#process = new StoreProcess();
    return this.#process;
  }
}

/** Leaves out the files, which travel beside the message. */
function withoutFiles({ size, blockSize, announced }: LeftBackend): Omit<LeftBackend, 'files'> {
  return { size, blockSize, announced };
}

/** What is in memory. */
async function openHere(options: BackendOptions, context: OpenContext): Promise<OpenBackend> {
  const { inherited } = context;
  if (inherited === undefined) return withParked(await openBackend(options, context));
  const files = inherited.files.flatMap(parkedFiles);
  return withParked(await openBackend(options, { ...context, inherited: { ...inherited, files } }));
}

function withParked(backend: OpenBackend): OpenBackend {
  if (backend.files.length === 0) return backend;
  const socket = parkFiles(backend.files);
  const parked = (open: OpenBackend): OpenBackend => {
    const resize = open.resize?.bind(open);
    const renew = open.renew?.bind(open);
    return {
      ...open,
      files: [socket],
      close: async () => {
        closeSync(socket);
        await open.close();
      },
      ...(resize === undefined ? {} : { resize: async (size: number) => parked(await resize(size)) }),
      ...(renew === undefined
        ? {}
        : { renew: async (...now: Parameters<typeof renew>) => parked(await renew(...now)) }),
    };
  };
  return parked(backend);
}
