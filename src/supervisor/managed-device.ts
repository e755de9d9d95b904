import type { Inheritance, OpenBackend, OpenContext } from '../../backends/interface.js';
import { SupervisorError } from '../errors.js';
import type { LeftDevice } from './adoption.js';
import type { BackendOptions } from '../../backends/registry.js';
import type { DeviceConfig } from '../config/types.js';
import type { CrashFiles } from './crash-files.js';
import type { Log } from './device-log.js';
import { Device } from './device.js';
import type { Served } from './hand-over.js';
import type { DeviceState } from './machine.js';
import type { FoundDevice, Kernel } from './kernel.js';
import type { Journal } from './journal.js';
import type { DeviceStatus } from './status.js';
import type { Clock } from './clock.js';

export type OpenBackendFunction = (options: BackendOptions, context: OpenContext) => Promise<OpenBackend>;

export interface ManagedDeviceContext {
  readonly kernel: Kernel;
  readonly log: Log;
  readonly openBackend: OpenBackendFunction;
  readonly clock: Clock | undefined;
  readonly journal: Pick<Journal, 'write' | 'remove'>;
  readonly crashFiles: CrashFiles | null;
  /** Called after every change of state, before anything follows from it; must not throw. */
  readonly onDeviceChange: (device: DeviceStatus) => void;
}

/** What a device could serve instead of what it serves. */
export interface Prepared extends Served {
  readonly replaces: OpenBackend;
}

/** A device together with the backend that is open for its sake. Its name and id are taken from the beginning. */
export class ManagedDevice {
  /** What the configuration file says of it; null: it was added by hand. */
  configured: DeviceConfig | null = null;
  /** Rejects when the backend cannot be opened or does not fit; then nothing is left open. */
  readonly opened: Promise<Device>;
  /** Resolves when the kernel gave the device its id, or when it will not for now. */
  readonly added: Promise<void>;
  readonly #openBackend: (config: DeviceConfig, inherited?: Inheritance) => Promise<OpenBackend>;
  readonly #journal: Pick<Journal, 'write' | 'remove'>;
  readonly #kernel: Kernel;
  #config: DeviceConfig;
  #device: Device | null = null;
  #backend: OpenBackend | null = null;
  #closed: Promise<void> | null = null;
  #removeData = false;
  #lastTurn: Promise<void> = Promise.resolve();
  #markAdded: () => void = () => undefined;

  /** `left`: what an earlier supervisor left of it. */
  constructor(config: DeviceConfig, context: ManagedDeviceContext, left: LeftDevice | null) {
    const size = left?.found?.size ?? null;
    // Its users know it with the size that the kernel has. Of a change of it a supervisor that died may have told nobody.
    this.#config = size === null ? config : withSize(config, size);
    this.#openBackend = ({ name: device, blockSize, readOnly, user, backend }, inherited) =>
      context.openBackend(backend, { device, blockSize, readOnly, user, ...(inherited ? { inherited } : {}) });
    this.added = new Promise((resolve) => {
      this.#markAdded = resolve;
    });
    this.#kernel = context.kernel;
    this.#journal = context.journal;
    this.opened = this.#open(context, left);
  }

  /** What it serves now. */
  get config(): DeviceConfig {
    return this.#config;
  }

  /** null until it is opened. */
  get device(): Device | null {
    return this.#device;
  }

  /** The backend's data is as new as the device. */
  get dataIsNew(): boolean {
    return this.#backend?.created === true;
  }

  get id(): number | null {
    return this.#device?.id ?? this.#config.id ?? null;
  }

  /** Resolves when the device is gone and its backend closed; `removeData` of any one caller counts for all. */
  async remove({ force, removeData }: { readonly force: boolean; readonly removeData: boolean }): Promise<void> {
    const device = await this.opened;
    await device.stop({ force });
    this.#removeData ||= removeData;
    this.#closed ??= this.#close();
    await this.#closed;
  }

  /**
   * Replaces its generation; of a backend in JavaScript the code, too. `zygote`: which one is to fork it; null: the one
   * that forks what is new.
   */
  restart(zygote: number | null = null): Promise<void> {
    return this.#inTurn(async () => {
      const { size } = (await this.opened).status();
      await this.#handOver({ ...(await this.prepare(this.#config, size)), zygote }, false);
    });
  }

  /**
   * What it would serve with another configuration, or, of a backend in JavaScript, with its code as it is now. Touches
   * nothing; rejects when the device cannot serve that.
   */
  async prepare(config: DeviceConfig, size: number): Promise<Prepared> {
    const device = await this.opened;
    const current = this.#backend;
    if (current === null) throw new TypeError(`device ${config.name} has no backend`);
    const backend = current.module === undefined ? current : await this.#openBackend(config);
    if (backend.size !== size) {
      const { name } = config;
      throw new SupervisorError(
        `handing device ${name} over failed: its backend announces ${String(backend.size)} bytes, not ${String(size)}; ` +
          'ublk-supervisor resize changes the size of a device',
        { code: 'REFUSED', device: name },
      );
    }
    const served = { config, backend, zygote: null };
    device.specOf(served);
    return { ...served, replaces: current };
  }

  /** Replaces what is served by what `prepare` gave. Rejects with `BUSY` when something else came in between. */
  handOver(next: Prepared): Promise<void> {
    return this.#inTurn(async () => {
      if (next.replaces === this.#backend) {
        await this.#handOver(next, false);
        return;
      }
      const { name } = this.#config;
      const message = `handing device ${name} over failed: it was changed in the meantime; try again`;
      throw new SupervisorError(message, { code: 'BUSY', device: name });
    });
  }

  async #handOver(next: Served, force: boolean): Promise<void> {
    const device = await this.opened;
    await device.handOver(next, { force });
    this.#config = next.config;
    this.#backend = next.backend;
    this.#record();
  }

  /** Rejects with `EOPNOTSUPP` or `REFUSED` when this kernel, or the backend, cannot do it; then nothing is touched. */
  resize(size: number, force: boolean): Promise<void> {
    return this.#inTurn(() => this.#resize(size, force));
  }

  /** One after the other: what the next one replaces is what this one leaves. */
  #inTurn(act: () => Promise<void>): Promise<void> {
    const done = this.#lastTurn.then(act);
    this.#lastTurn = done.catch(() => undefined);
    return done;
  }

  async #resize(size: number, force: boolean): Promise<void> {
    const device = await this.opened;
    const { name } = this.#config;
    const current = this.#backend;
    const refuse = (reason: string, code = 'REFUSED'): SupervisorError =>
      new SupervisorError(`resizing device ${name} failed: ${reason}`, { code, device: name });
    if (current === null || device.state !== 'live') throw refuse(`it is ${device.state}; recover it first`, 'BUSY');
    if (!this.#kernel.resizes) throw refuse('this kernel cannot (UPDATE_SIZE, Linux 6.16)', 'EOPNOTSUPP');
    const { blockSize } = device.status();
    if (size % blockSize !== 0)
      throw refuse(`${String(size)} is not a multiple of its block size ${String(blockSize)}`);
    if (current.module !== undefined) {
      await this.#handOver(await this.prepare(this.#config, size), force);
      return;
    }
    if (size === current.size) return;
    if (current.resize === undefined) throw refuse(`its backend ${this.#config.backend.type} cannot change its size`);
    if (size < current.size && !force) await device.assertUnused();
    const backend = await current.resize(size);
    try {
      await this.#handOver({ config: withSize(this.#config, size), backend, zygote: null }, force);
    } catch (error) {
      if (size > current.size) await current.trim?.();
      throw error;
    }
    if (size < current.size) await backend.trim?.();
  }

  async #open(context: ManagedDeviceContext, left: LeftDevice | null): Promise<Device> {
    const { kernel, log, clock, crashFiles, onDeviceChange } = context;
    const { name: device, backend: options } = this.#config;
    const found = left?.found ?? undefined;
    const backend = await this.#openBackend(this.#config, {
      size: found?.size ?? null,
      announced: found === undefined ? null : (left?.announced ?? null),
      files: options.type === 'module' ? [] : (found?.held?.files ?? []),
    });
    const onChange = (state: DeviceState): void => {
      if (state !== 'adding') this.#markAdded();
      if (state === 'starting') this.#record();
      else if (state === 'gone') this.#journal.remove(device);
      if (this.#device) onDeviceChange(this.#device.status());
    };
    try {
      if (found !== undefined) assertSameSize(device, found, backend.size);
      const config = this.#config;
      this.#device = new Device({ config, backend, kernel, log, clock, found, crashFiles, onChange });
    } catch (error) {
      await backend.close();
      if (backend.created) await backend.remove();
      throw error;
    }
    this.#backend = backend;
    return this.#device;
  }

  #record(): void {
    const id = this.id;
    if (id === null || this.#backend === null) return;
    const { size, blockSize, identity, facts } = this.#backend;
    const announced = { size, blockSize: blockSize ?? null, identity, facts };
    this.#journal.write({ id, added: this.configured === null, announced, config: this.#config });
  }

  async #close(): Promise<void> {
    await this.#backend?.close();
    if (this.#removeData) await this.#backend?.remove();
  }
}

/** Who uses the device was promised that size. */
function assertSameSize(device: string, { id, size }: FoundDevice, now: number): void {
  if (size === null || size === now) return;
  const message =
    `adopting device ${device} failed: /dev/ublkb${String(id)} has ${String(size)} bytes and its backend ` +
    `${String(now)}; it goes on being served, but is managed only when that is its size again`;
  throw new SupervisorError(message, { code: 'CONFIG', device });
}

/** The same configuration with another size of the device. */
export function withSize(config: DeviceConfig, size: number): DeviceConfig {
  const { backend } = config;
  return 'size' in backend && backend.size !== undefined ? { ...config, backend: { ...backend, size } } : config;
}
