import type { LeftBackend, OpenBackend, OpenContext } from '../../backends/interface.js';
import type { ErrorCode } from '../error-codes.js';
import { SupervisorError } from '../errors.js';
import type { LeftDevice } from './adoption.js';
import type { BackendOptions } from '../../backends/registry.js';
import type { DeviceConfig } from '../config/types.js';
import { monotonicClock, type Clock } from '../timing/clock.js';
import type { CrashFiles } from './crashes/crash-files.js';
import type { Log } from '../log/log.js';
import { within } from '../timing/deadline.js';
import { machine } from './device/machine.js';
import { Device } from './device/device.js';
import type { Served } from './device/hand-over.js';
import type { Kernel } from './ublk/kernel.js';
import type { Journal } from './journal.js';
import { Partitions } from './nodes/partitions.js';
import type { DeviceChange, DeviceState } from '../api/status.js';
import type { Turns } from '../timing/turns.js';

export interface OpensStores {
  /** The files of `inherited` are the socket that they are parked in, which stays the caller's. */
  open(options: BackendOptions, context: OpenContext): Promise<OpenBackend>;
  /** Closes such a socket in a process that may wait for that. */
  letGo(options: BackendOptions, files: readonly number[]): void;
}

export interface ManagedDeviceContext {
  readonly kernel: Kernel;
  /** For devices that recover at the same time. */
  readonly turns: Turns;
  readonly log: Log;
  readonly stores: OpensStores;
  readonly clock: Clock | undefined;
  readonly journal: Pick<Journal, 'write' | 'remove'>;
  readonly crashFiles: CrashFiles | null;
  /** Called after every change of state, before anything follows from it; must not throw. */
  readonly onDeviceChange: (device: DeviceChange) => void;
  /** Called with the partitions that /dev/ublkbN has from now on; must not throw. */
  readonly onPartitionsChange: (device: string, id: number, numbers: readonly number[]) => void;
}

/** What a device could serve instead of what it serves. */
export interface Prepared extends Served {
  readonly replaces: OpenBackend;
}

/** How long what keeps a store from being opened may be a process of ours that is no more: its ring outlives it a little. */
const LOCK_GRACE_MS = 2000;
const LOCK_POLL_MS = 50;
const OPENING_GRACE_MS = 1000;
/** A store that is not closed by then is closed when it can be, or with this process. */
const CLOSE_DEADLINE_MS = 10_000;
const RESIZE_DEADLINE_MS = 150_000;
/** How long a start waits for the partitions of its device, at most. */
const PARTITIONS_GRACE_MS = 5000;
/** How long a caller waits for a look at the table, which a slow store may hold up. The look goes on. */
const PARTITIONS_DEADLINE_MS = 60_000;

/** A device together with the backend that is opened for its sake. Its name and id are taken from the beginning. */
export class ManagedDevice {
  /** What the configuration file says of it; null: it was added by hand. */
  configured: DeviceConfig | null = null;
  /** An earlier supervisor made it. */
  readonly found: boolean;
  readonly device: Device;
  /** Resolves when the kernel gave the device its id, or when it will not for now. */
  readonly added: Promise<void>;
  readonly #openBackend: (config: DeviceConfig, inherited?: LeftBackend) => Promise<OpenBackend>;
  readonly #journal: Pick<Journal, 'write' | 'remove'>;
  readonly #kernel: Kernel;
  readonly #stores: OpensStores;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #partitions: Partitions;
  /** Files of the backend that an earlier supervisor left open, until it is open here. */
  #inherited: readonly number[];
  #config: DeviceConfig;
  #closed: Promise<void> | null = null;
  #removeData = false;
  /** Its store may be larger than what is served: a change of size was begun. */
  #oversized = false;
  #lastTurn: Promise<void> = Promise.resolve();
  #markAdded: () => void = () => undefined;

  /** `left`: what an earlier supervisor left of it. */
  constructor(config: DeviceConfig, context: ManagedDeviceContext, left: LeftDevice | null) {
    const { kernel, log, crashFiles, onDeviceChange, clock = monotonicClock } = context;
    const found = left?.found ?? undefined;
    const size = found?.size ?? null;
    const announced = found === undefined ? null : (left?.announced ?? null);
    // The device's users know the size that the kernel has. A supervisor that died while it changed the size may not have told the kernel.
    this.#config = size === null ? config : withSize(config, size);
    this.#openBackend = ({ name: device, blockSize: configured, readOnly, user, backend }, inherited) => {
      const blockSize = inherited?.blockSize ?? configured ?? null;
      return context.stores.open(backend, { device, blockSize, readOnly, user, ...(inherited ? { inherited } : {}) });
    };
    this.added = new Promise((resolve) => {
      this.#markAdded = resolve;
    });
    this.found = size !== null;
    this.#kernel = kernel;
    this.#journal = context.journal;
    this.#stores = context.stores;
    this.#clock = clock;
    this.#log = log;
    const files = found?.held?.files ?? [];
    this.#inherited = config.backend.type === 'module' ? files.slice(0, 1) : files;
    const { name } = config;
    this.#partitions = new Partitions(name, log, (id, numbers) => context.onPartitionsChange(name, id, numbers));
    const onChange = (state: DeviceState): void => {
      if (state !== 'adding') this.#markAdded();
      if (state === 'starting') this.#record();
      else if (state === 'gone') this.#journal.remove(name);
      const { blockDevice } = machine[state];
      if (blockDevice === 'usable') this.#followPartitions();
      else if (blockDevice === 'absent') this.#partitions.leave();
      onDeviceChange({ name, id: this.device.id, state, size: this.device.size, blockDevice });
    };
    const openBackend = (): Promise<OpenBackend> =>
      this.#openOnceUnlocked({ size, blockSize: found?.blockSize ?? null, announced });
    this.device = new Device({
      config: this.#config,
      openBackend,
      kernel,
      turns: context.turns,
      log,
      clock,
      found,
      announced,
      crashFiles,
      onChange,
    });
  }

  /** Call once. Resolves when the device is live, as a rule with its partitions; rejects when it failed, or was stopped before. */
  async start(): Promise<void> {
    await this.device.start();
    await within('looking for partitions', PARTITIONS_GRACE_MS, this.#partitions.settled).catch(() => undefined);
  }

  /** Looks at the table on it again. Resolves with the partitions, as /dev/ublkbNpM; rejects with why they are not those of it. */
  async lookForPartitions(): Promise<readonly string[]> {
    const { name, partitions } = this.#config;
    const what = `looking for partitions of device ${name}`;
    const { blockDevice, state } = this.device;
    if (!partitions) {
      const message = `${what} failed: its configuration does not ask for them; set partitions to true and reload`;
      throw new SupervisorError(message, { code: 'REFUSED', device: name });
    }
    if (blockDevice === null || machine[state].blockDevice === 'absent') {
      throw new SupervisorError(`${what} failed: it is ${state}`, { code: 'BUSY', device: name });
    }
    const numbers = await within(what, PARTITIONS_DEADLINE_MS, this.#partitions.look());
    return numbers.map((number) => `/dev/ublkb${blockDevice}p${number}`);
  }

  /** What it serves now. */
  get config(): DeviceConfig {
    return this.#config;
  }

  /** The backend's data is as new as the device. */
  get dataIsNew(): boolean {
    return this.device.backend?.created === true;
  }

  get id(): number | null {
    return this.device.id ?? this.#config.id ?? null;
  }

  /** Resolves when the device is gone and its backend closed; `removeData` of any one caller counts for all. */
  async remove({ force, removeData }: { readonly force: boolean; readonly removeData: boolean }): Promise<void> {
    await this.device.stop({ force });
    this.#removeData ||= removeData;
    this.#closed ??= this.#close();
    await this.#closed;
  }

  /**
   * Replaces its generation; of a backend in JavaScript the code, too. `nursery`: whose native code is to serve it; null:
   * that of what is new.
   */
  restart(nursery: number | null = null): Promise<void> {
    return this.#inTurn(async () => {
      const { size } = this.device;
      await this.#handOver({ ...(await this.prepare(this.#config, size)), nursery }, false);
    });
  }

  /**
   * What it would serve with another configuration, or, of a backend in JavaScript, with its code as it is now. Touches
   * nothing; rejects when the device cannot serve that.
   */
  async prepare(config: DeviceConfig, size: number): Promise<Prepared> {
    const current = await this.device.openSoon();
    const { backend: wanted, user } = config;
    const renewed = wanted.type === 'module' ? await current.renew?.(wanted, user) : undefined;
    const backend = renewed ?? current;
    if (backend.size !== size) {
      const { name } = config;
      throw new SupervisorError(
        `handing device ${name} over failed: its backend announces ${backend.size} bytes, not ${size}; ` +
          'ublk-supervisor resize changes the size of a device',
        { code: 'REFUSED', device: name },
      );
    }
    const served = { config, backend, nursery: null };
    this.device.specOf(served);
    return { ...served, replaces: current };
  }

  /** Replaces what is served by what `prepare` gave. Rejects with `BUSY` when something else came in between. */
  handOver(next: Prepared): Promise<void> {
    return this.#inTurn(async () => {
      if (next.replaces === this.device.backend) {
        await this.#handOver(next, false);
        return;
      }
      const { name } = this.#config;
      const message = `handing device ${name} over failed: it was changed in the meantime; try again`;
      throw new SupervisorError(message, { code: 'BUSY', device: name });
    });
  }

  async #handOver(next: Served, force: boolean): Promise<void> {
    await this.device.handOver(next, { force });
    const had = this.#config.partitions;
    this.#config = next.config;
    this.#record();
    if (next.config.partitions) this.#followPartitions();
    else if (had) await this.#partitions.drop();
  }

  #followPartitions(): void {
    const { blockDevice } = this.device;
    if (this.#config.partitions && blockDevice !== null) this.#partitions.follow(blockDevice);
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
    const { device } = this;
    const { name } = this.#config;
    const refuse = (reason: string, code: ErrorCode = 'REFUSED'): SupervisorError =>
      new SupervisorError(`resizing device ${name} failed: ${reason}`, { code, device: name });
    if (device.state !== 'live') throw refuse(`it is ${device.state}; recover it first`, 'BUSY');
    if (!this.#kernel.resizes) throw refuse('this kernel cannot (UPDATE_SIZE, Linux 6.16)', 'EOPNOTSUPP');
    const { blockSize } = device;
    if (size % blockSize !== 0) throw refuse(`${size} is not a multiple of its block size ${blockSize}`);
    const current = await device.openSoon();
    // Until it is done: what is cut off must not become anybody's meanwhile.
    const shrunk = size < current.size && !force ? device.blockDevice : null;
    const claim = shrunk === null ? null : await this.#kernel.claim([shrunk], 'shrinking');
    try {
      if (current.module !== undefined) {
        await this.#handOver(await this.prepare(this.#config, size), force);
        return;
      }
      if (size === current.size) return;
      if (current.resize === undefined) throw refuse(`its backend ${this.#config.backend.type} cannot change its size`);
      this.#oversized = true;
      const backend = await within(`resizing the backend of device ${name}`, RESIZE_DEADLINE_MS, current.resize(size));
      try {
        await this.#handOver({ config: withSize(this.#config, size), backend, nursery: null }, force);
      } catch (error) {
        if (isLive(device)) await this.#trim().catch(() => undefined);
        throw error;
      }
      await this.#trim();
    } finally {
      await claim?.release();
    }
  }

  /** Gives the store the size that is served now. Call it only while no generation may serve the other size. */
  async #trim(): Promise<void> {
    if (!this.#oversized) return;
    const trimmed = this.device.backend?.trim?.() ?? Promise.resolve();
    await within(`trimming the backend of device ${this.#config.name}`, RESIZE_DEADLINE_MS, trimmed);
    this.#oversized = false;
  }

  /** Tries again for as long as it may be the lock of a process of ours that has just ended. */
  async #openOnceUnlocked(inherited: Omit<LeftBackend, 'files'>): Promise<OpenBackend> {
    const deadline = this.#clock.now() + LOCK_GRACE_MS;
    for (;;) {
      try {
        const backend = await this.#openBackend(this.#config, { ...inherited, files: this.#inherited });
        this.#letGo();
        const { name: device } = this.#config;
        if (backend.warning !== undefined) this.#log.warn({ device }, `device ${device}: ${backend.warning}`);
        return backend;
      } catch (error) {
        const locked = error instanceof SupervisorError && error.code === 'IN_USE';
        if (!locked || this.#closed !== null || this.#clock.now() > deadline) throw error;
        await this.#clock.sleep(LOCK_POLL_MS, new AbortController().signal);
      }
    }
  }

  #letGo(): void {
    this.#stores.letGo(this.#config.backend, this.#inherited);
    this.#inherited = [];
  }

  #record(): void {
    const { id } = this;
    const { backend } = this.device;
    if (id === null || backend === null) return;
    const { size, blockSize, identity, facts, module } = backend;
    const announced = { size, blockSize: blockSize ?? null, identity, facts, lower: module?.lower };
    this.#journal.write({ id, added: this.configured === null, announced, config: this.#config });
  }

  async #close(): Promise<void> {
    this.#letGo();
    // What is opened too late for the device is closed again.
    await within('opening', OPENING_GRACE_MS, this.device.opened).catch(() => undefined);
    await this.#trim().catch(() => undefined);
    const { backend } = this.device;
    if (backend === null) return;
    const { name } = this.#config;
    await within(`closing the backend of device ${name}`, CLOSE_DEADLINE_MS, backend.close());
    if (this.#removeData) await within(`removing the data of device ${name}`, CLOSE_DEADLINE_MS, backend.remove());
  }
}

/** It may be another state after each wait. */
function isLive(device: Device): boolean {
  return device.state === 'live';
}

/** The same configuration with another size of the device. */
export function withSize(config: DeviceConfig, size: number): DeviceConfig {
  const { backend } = config;
  return 'size' in backend && backend.size !== undefined ? { ...config, backend: { ...backend, size } } : config;
}
