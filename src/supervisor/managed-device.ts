import type { OpenBackend, OpenContext } from '../../backends/interface.js';
import type { BackendOptions } from '../../backends/registry.js';
import type { DeviceConfig } from '../config/types.js';
import type { Log } from './device-log.js';
import { Device } from './device.js';
import type { Kernel } from './kernel.js';
import type { DeviceStatus } from './status.js';
import type { Clock } from './clock.js';

export type OpenBackendFunction = (options: BackendOptions, context: OpenContext) => Promise<OpenBackend>;

export interface ManagedDeviceContext {
  readonly kernel: Kernel;
  readonly log: Log;
  readonly openBackend: OpenBackendFunction;
  readonly clock: Clock | undefined;
  /** Called after every change of state, before anything follows from it; must not throw. */
  readonly onDeviceChange: (device: DeviceStatus) => void;
}

/** A device together with the backend that is open for its sake. Its name and id are taken from the beginning. */
export class ManagedDevice {
  readonly config: DeviceConfig;
  /** Rejects when the backend cannot be opened or does not fit; then nothing is left open. */
  readonly opened: Promise<Device>;
  /** Resolves when the kernel gave the device its id, or when it will not for now. */
  readonly added: Promise<void>;
  #device: Device | null = null;
  #backend: OpenBackend | null = null;
  #closed: Promise<void> | null = null;
  #removeData = false;
  #markAdded: () => void = () => undefined;

  constructor(config: DeviceConfig, context: ManagedDeviceContext) {
    this.config = config;
    this.added = new Promise((resolve) => {
      this.#markAdded = resolve;
    });
    this.opened = this.#open(context);
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

  async #open({ kernel, log, openBackend, clock, onDeviceChange }: ManagedDeviceContext): Promise<Device> {
    const { name: device, blockSize, readOnly } = this.config;
    const backend = await openBackend(this.config.backend, { device, blockSize, readOnly });
    const onChange = (state: string): void => {
      if (state !== 'adding') this.#markAdded();
      if (this.#device) onDeviceChange(this.#device.status());
    };
    try {
      this.#device = new Device({ config: this.config, backend, kernel, log, clock, onChange });
    } catch (error) {
      await backend.close();
      if (backend.created) await backend.remove();
      throw error;
    }
    this.#backend = backend;
    return this.#device;
  }

  async #close(): Promise<void> {
    await this.#backend?.close();
    if (this.#removeData) await this.#backend?.remove();
  }
}
