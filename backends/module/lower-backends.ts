import { resolve } from 'node:path';
import { SupervisorError } from '../../src/errors.js';
import type { BackendInput, LowerBackend, OpenBackend, OpenContext, OpenLower } from '../interface.js';
import { trustedPath } from './trusted.js';

const MOST = 16;

interface Lower {
  readonly described: LowerBackend;
  /** null: it is a module, which the queue processes open. */
  readonly backend: OpenBackend | null;
}

/** What the processes of a backend in JavaScript have below it, opened here for all of them: their locks outlive a process. */
export class LowerBackends {
  readonly #device: string;
  readonly #open: OpenLower;
  readonly #list: Lower[] = [];

  constructor({ device, openLower }: Pick<OpenContext, 'device' | 'openLower'>) {
    this.#device = device;
    this.#open = openLower ?? (() => Promise.reject(this.#refused('this cannot open any')));
  }

  get described(): readonly LowerBackend[] {
    return this.#list.map(({ described }) => described);
  }

  /** In their order, of those that have any. */
  get files(): readonly number[] {
    return this.#list.flatMap(({ backend }) => backend?.files ?? []);
  }

  filesOf(place: number): readonly number[] {
    return this.#list[place]?.backend?.files ?? [];
  }

  /** Opens one more. */
  async add(asked: BackendInput, directory: string): Promise<void> {
    if (this.#list.length === MOST) throw this.#refused(`it asks for more than ${MOST}`);
    await this.#add(asked, directory, undefined);
  }

  /** Opens again what an earlier supervisor had, with the `sockets` that the files of some are parked in. */
  async takeOver(left: readonly LowerBackend[], sockets: readonly number[], directory: string): Promise<void> {
    const next = sockets.values();
    for (const { asked, store } of left) {
      if (store.kind === 'module') {
        this.#list.push({ described: { asked, store }, backend: null });
        continue;
      }
      const { size, blockSize } = store;
      const { value: socket } = store.parked ? next.next() : { value: undefined };
      const files = socket === undefined ? [] : [socket];
      await this.#add(asked, directory, { files, size, blockSize, announced: store });
    }
  }

  async check(): Promise<void> {
    for (const { backend } of this.#list) await backend?.check?.();
  }

  async close(): Promise<void> {
    for (const { backend } of this.#list) await backend?.close();
  }

  async remove(): Promise<void> {
    for (const { backend } of this.#list) await backend?.remove();
  }

  /** Closes all, and removes what was made for them. */
  async undo(): Promise<void> {
    await this.close();
    for (const { backend } of this.#list) if (backend?.created === true) await backend.remove();
  }

  async #add(asked: BackendInput, directory: string, inherited: OpenContext['inherited']): Promise<void> {
    const device = `${this.#device}.${this.#list.length + 1}`;
    const opened = await this.#open(asked, directory, { device, ...(inherited === undefined ? {} : { inherited }) });
    if (opened.kind === 'module') {
      const { kind, path, options } = opened;
      this.#list.push({
        described: { asked, store: { kind, path: await trustedPath(path), options } },
        backend: null,
      });
      return;
    }
    const { kind, name, backend } = opened;
    const { size, blockSize = null, facts, identity, files } = backend;
    const store = { kind, name, size, blockSize, facts, identity, parked: files.length > 0 };
    this.#list.push({ described: { asked, store }, backend });
  }

  #refused(reason: string): SupervisorError {
    const message = `opening what the backend of device ${this.#device} has below it failed: ${reason}`;
    return new SupervisorError(message, { code: 'BACKEND', device: this.#device });
  }
}

/**
 * Whether the configuration, which a trusted user wrote, names the path that is asked for. A process of another user could otherwise
 * have us open what that user may not.
 */
export function isNamedIn(options: unknown, asked: BackendInput, directory: string): boolean {
  const { path } = asked;
  if (typeof path !== 'string') return true;
  const wanted = resolve(directory, path);
  const names = (value: unknown): boolean =>
    typeof value === 'string'
      ? resolve(directory, value) === wanted
      : typeof value === 'object' && value !== null && Object.values(value).some(names);
  return names(options);
}
