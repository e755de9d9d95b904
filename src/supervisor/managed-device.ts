import type { OpenBackend, OpenContext } from '../../backends/interface.js';
import { SupervisorError } from '../errors.js';
import type { LeftDevice } from './adoption.js';
import type { BackendOptions } from '../../backends/registry.js';
import type { DeviceConfig } from '../config/types.js';
import type { CrashFiles } from './crash-files.js';
import type { Log } from './device-log.js';
import { Device } from './device.js';
import type { DeviceState } from './machine.js';
import type { FoundDevice, Kernel } from './kernel.js';
import type { Journal } from './journal.js';
import type { Clock } from './clock.js';

export type OpenBackendFunction = (options: BackendOptions, context: OpenContext) => Promise<OpenBackend>;

export interface ManagedDeviceContext {
  readonly kernel: Kernel;
  readonly log: Log;
  readonly openBackend: OpenBackendFunction;
  readonly clock: Clock | undefined;
  readonly journal: Pick<Journal, 'write' | 'remove'>;
  readonly crashFiles: CrashFiles | null;
}

/** A device together with the backend that is open for its sake. Its name and id are taken from the beginning. */
export class ManagedDevice {
  readonly config: DeviceConfig;
  /** By `add`, not by the configuration. */
  readonly byHand: boolean;
  /** Rejects when the backend cannot be opened or does not fit; then nothing is left open. */
  readonly opened: Promise<Device>;
  /** Resolves when the kernel gave the device its id, or when it will not for now. */
  readonly added: Promise<void>;
  #device: Device | null = null;
  #backend: OpenBackend | null = null;
  #closed: Promise<void> | null = null;
  #removeData = false;
  #markAdded: () => void = () => undefined;

  /** `left`: what an earlier supervisor left of it. */
  constructor(config: DeviceConfig, context: ManagedDeviceContext, byHand: boolean, left: LeftDevice | null) {
    this.config = config;
    this.byHand = byHand;
    this.added = new Promise((resolve) => {
      this.#markAdded = resolve;
    });
    this.opened = this.#open(context, left);
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
    return this.#device?.id ?? this.config.id ?? null;
  }

  /** Resolves when the device is gone and its backend closed; `removeData` of any one caller counts for all. */
  async remove({ force, removeData }: { readonly force: boolean; readonly removeData: boolean }): Promise<void> {
    const device = await this.opened;
    await device.stop({ force });
    this.#removeData ||= removeData;
    this.#closed ??= this.#close();
    await this.#closed;
  }

  async #open(context: ManagedDeviceContext, left: LeftDevice | null): Promise<Device> {
    const { kernel, log, openBackend, clock, journal, crashFiles } = context;
    const { name: device, blockSize, readOnly, user } = this.config;
    const found = left?.found ?? undefined;
    const inherited = {
      announced: found === undefined ? null : (left?.announced ?? null),
      files: this.config.backend.type === 'module' ? [] : (found?.held?.files ?? []),
    };
    const backend = await openBackend(this.config.backend, { device, blockSize, readOnly, user, inherited });
    const onChange = (state: DeviceState): void => {
      if (state !== 'adding') this.#markAdded();
      if (state === 'starting') this.#record(journal, backend);
      else if (state === 'gone') journal.remove(device);
    };
    try {
      if (found !== undefined) assertSameSize(device, found, backend.size);
      this.#device = new Device({ config: this.config, backend, kernel, log, clock, found, crashFiles, onChange });
    } catch (error) {
      await backend.close();
      if (backend.created) await backend.remove();
      throw error;
    }
    this.#backend = backend;
    return this.#device;
  }

  #record(journal: Pick<Journal, 'write'>, { size, blockSize, facts }: OpenBackend): void {
    const id = this.id;
    if (id === null) return;
    const announced = { size, blockSize: blockSize ?? null, facts };
    journal.write({ id, added: this.byHand, announced, config: this.config });
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
