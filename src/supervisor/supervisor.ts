import { openBackend as openRegisteredBackend } from '../../backends/registry.js';
import type { Config, DeviceConfig } from '../config/types.js';
import { messageOf, SupervisorError } from '../errors.js';
import type { Clock } from './clock.js';
import type { CrashFiles } from './crash-files.js';
import type { Log } from './device-log.js';
import type { Claim, Kernel } from './kernel.js';
import { configuredSize, type PlanEntry } from './reload-plan.js';
import { reload } from './reload.js';
import { ManagedDevice, withSize, type ManagedDeviceContext, type OpenBackendFunction } from './managed-device.js';
import type { LeftDevice } from './adoption.js';
import { machine } from './machine.js';
import type { Successor } from './zygote-keeper.js';
import type { Journal } from './journal.js';
import type { DeviceStatus, Status, SupervisorApi } from './status.js';

export interface SupervisorOptions {
  readonly kernel: Kernel;
  readonly log: Log;
  readonly version: string;
  /** As `uname -r` prints it. */
  readonly kernelRelease: string;
  /** Validates what `add` is given; throws a `SupervisorError`. */
  readonly parseDevice: (input: unknown) => DeviceConfig;
  /** Reads the configuration again; left out, there is none to read. */
  readonly loadConfig?: (() => Promise<Config>) | undefined;
  /** A nursery of the native code that is installed now; left out, there is only one. */
  readonly startSuccessor?: () => Promise<Successor>;
  /** Rejects when this process cannot be replaced by what is installed now; left out, it never is. */
  readonly assertReplaceable?: (() => Promise<void>) | undefined;
  /** Called once. */
  readonly onEnd?: () => void;
  /** Called after every change of a device's state, before anything follows from it; must not throw. */
  readonly onDeviceChange?: (device: DeviceStatus) => void;
  readonly openBackend?: OpenBackendFunction;
  readonly clock?: Clock;
  readonly journal?: Pick<Journal, 'write' | 'remove'>;
  /** What an earlier supervisor left, given the devices of the configuration; called once, before any device is made. */
  readonly findLeftDevices?: (configured: readonly DeviceConfig[]) => Promise<readonly LeftDevice[]>;
  readonly crashFiles?: CrashFiles | null;
}

/** `replaced`: its devices are served on, for the successor that takes its process over. */
export type SupervisorEnd = 'stopped' | 'replaced';

const NO_JOURNAL = { write: () => undefined, remove: () => undefined };

export interface StartFailure {
  readonly name: string;
  readonly error: SupervisorError;
}

interface RemoveOptions {
  readonly force: boolean;
  readonly removeData: boolean;
}

/** Every device of one supervisor, by name. */
export class Supervisor implements SupervisorApi {
  readonly #context: ManagedDeviceContext;
  readonly #log: Log;
  readonly #version: string;
  readonly #kernelRelease: string;
  readonly #parseDevice: (input: unknown) => DeviceConfig;
  readonly #loadConfig: (() => Promise<Config>) | undefined;
  readonly #startSuccessor: (() => Promise<Successor>) | undefined;
  readonly #assertReplaceable: (() => Promise<void>) | undefined;
  readonly #onEnd: () => void;
  readonly #findLeftDevices: (configured: readonly DeviceConfig[]) => Promise<readonly LeftDevice[]>;
  readonly #devices = new Map<string, ManagedDevice>();
  /** Until it is known there is more to be stopped than the devices. */
  #left: Promise<readonly LeftDevice[]> = Promise.resolve([]);
  /** Stops under way or done; while there are any nothing is added. */
  #stops = 0;
  #end: SupervisorEnd | null = null;
  /** What is under way that changes more than one device. */
  #busy: 'a reload' | 'an upgrade' | null = null;

  constructor(options: SupervisorOptions) {
    const { kernel, log, openBackend = openRegisteredBackend, clock, onEnd = () => undefined } = options;
    const { journal = NO_JOURNAL, crashFiles = null, onDeviceChange = () => undefined } = options;
    this.#context = { kernel, log, openBackend, clock, journal, crashFiles, onDeviceChange };
    this.#findLeftDevices = options.findLeftDevices ?? (() => Promise.resolve([]));
    this.#log = log;
    this.#version = options.version;
    this.#kernelRelease = options.kernelRelease;
    this.#parseDevice = options.parseDevice;
    this.#loadConfig = options.loadConfig;
    this.#startSuccessor = options.startSuccessor;
    this.#assertReplaceable = options.assertReplaceable;
    this.#onEnd = onEnd;
  }

  /** null: it has not ended. */
  get end(): SupervisorEnd | null {
    return this.#end;
  }

  /**
   * Resolves when every device of the configuration is live or has failed; returns the failures. A device that failed
   * stays, to be recovered or removed, unless its backend could not be opened.
   */
  async start({ devices }: Config): Promise<StartFailure[]> {
    const failures: StartFailure[] = [];
    this.#left = this.#findLeftDevices(devices);
    const left = await this.#left;
    const fresh = devices.filter(({ name }) => !left.some(({ config }) => config.name === name));
    const open = (config: DeviceConfig, from: LeftDevice | null): Promise<ManagedDevice | undefined> =>
      this.#open(config, from).catch((error: unknown) => {
        const failure = { name: config.name, error: known(error, `opening device ${config.name}`) };
        this.#log.error({ device: failure.name, code: failure.error.code }, failure.error.message);
        failures.push(failure);
        return undefined;
      });
    const opening = [...left.map((one) => open(one.config, one)), ...fresh.map((config) => open(config, null))];
    const opened = (await Promise.all(opening)).filter((managed) => managed !== undefined);
    for (const managed of opened) {
      const inFile = devices.find(({ name }) => name === managed.config.name);
      managed.configured = inFile === undefined ? null : asServed(inFile, managed.config);
    }
    // One ADD_DEV after the other, wanted ids first: the ids that the kernel chooses are the same at every start.
    const wanted = opened.filter(({ config }) => config.id !== undefined);
    const chosen = opened.filter(({ config }) => config.id === undefined);
    const starting: Promise<unknown>[] = [];
    for (const managed of [...wanted, ...chosen]) {
      const { name } = managed.config;
      const start = this.#startOne(managed).catch((error: unknown) => {
        failures.push({ name, error: known(error, `starting device ${name}`) });
      });
      starting.push(start);
      await managed.added;
    }
    await Promise.all(starting);
    return failures;
  }

  /**
   * As `start`, but all or nothing: when a device fails, those that this made are removed again, and it rejects. What an
   * earlier supervisor left stays as it is, served.
   */
  async startAll(config: Config): Promise<void> {
    const failures = await this.start(config);
    const [first] = failures;
    if (first === undefined) return;
    const made = [...this.#devices.values()].filter(({ found }) => !found);
    await Promise.all(made.map((managed) => this.#undo(managed)));
    const { name: device, error: cause } = first;
    const message = failures.map(({ error }) => error.message).join('\n');
    throw new SupervisorError(message, { code: cause.code, errno: cause.errno, device, cause });
  }

  status(): Status {
    return {
      supervisor: { pid: process.pid, version: this.#version, kernel: this.#kernelRelease },
      devices: [...this.#devices.values()].flatMap(({ device }) => (device === null ? [] : [device.status()])),
    };
  }

  async add(input: unknown): Promise<DeviceStatus> {
    const managed = await this.#open(this.#parseDevice(input), null);
    try {
      return await this.#startOne(managed);
    } catch (error) {
      await this.#undo(managed);
      throw error;
    }
  }

  async remove(name: string, options: RemoveOptions): Promise<void> {
    await this.#remove(this.#find('removing', name), options);
  }

  async recover(name: string, options: { readonly clearQuarantine?: boolean } = {}): Promise<DeviceStatus> {
    const device = await this.#find('recovering', name).opened;
    await device.recover(options);
    return device.status();
  }

  async restart(name: string): Promise<DeviceStatus> {
    const managed = this.#find('restarting', name);
    await managed.restart();
    return (await managed.opened).status();
  }

  async resize(
    name: string,
    { size, force }: { readonly size: number; readonly force: boolean },
  ): Promise<DeviceStatus> {
    const managed = this.#find('resizing', name);
    await managed.resize(size, force);
    return (await managed.opened).status();
  }

  /** Where the code of each device's backend in JavaScript is, by the device's name. */
  modules(): ReadonlyMap<string, string> {
    const modules = new Map<string, string>();
    for (const { config } of this.#devices.values()) {
      if (config.backend.type === 'module') modules.set(config.name, config.backend.path);
    }
    return modules;
  }

  async reload({ dryRun }: { readonly dryRun: boolean }): Promise<readonly PlanEntry[]> {
    const refuse = (reason: string, code: string): SupervisorError =>
      new SupervisorError(`reloading failed: ${reason}`, { code });
    const loadConfig = this.#loadConfig;
    if (loadConfig === undefined) throw refuse('this supervisor has no configuration file', 'REFUSED');
    return this.#alone('a reload', 'reloading', async () => {
      const { devices } = await loadConfig();
      if (this.#stops > 0) throw refuse('the supervisor is stopping', 'STOPPING');
      const target = {
        devices: [...this.#devices.values()],
        open: (config: DeviceConfig) => this.#open(config, null),
        start: (managed: ManagedDevice) => this.#startOne(managed),
        claim: (devices: readonly ManagedDevice[]) => this.#claim(devices),
        remove: (managed: ManagedDevice) => this.#remove(managed, { force: false, removeData: false }),
        undo: (managed: ManagedDevice) => this.#undo(managed),
      };
      return await reload(target, devices, { dryRun, log: this.#log });
    });
  }

  async upgrade(): Promise<void> {
    // Once another zygote has mapped the device it cannot be given back to the first.
    if (this.#context.kernel.quirks.recoveryBeginsOnce) {
      const reason = 'on this kernel (before Linux 6.16) a device could not go back to the code before';
      const advice = 'stop the supervisor and start it again';
      throw new SupervisorError(`upgrading failed: ${reason}; ${advice}`, { code: 'EOPNOTSUPP' });
    }
    await this.#alone('an upgrade', 'upgrading', async () => {
      const successor = await this.#successor();
      try {
        // Also those that are added meanwhile.
        for (const managed of this.#devices.values()) await this.#upgradeOne(managed, successor);
      } catch (error) {
        successor.discard();
        throw error;
      }
      successor.accept();
    });
  }

  async #successor(): Promise<Successor> {
    if (this.#startSuccessor === undefined) throw new TypeError('nothing to upgrade to');
    try {
      return await this.#startSuccessor();
    } catch (error) {
      const { code, message } = known(error, 'starting a zygote');
      const advice = 'if another version was installed, ublk-supervisor upgrade --self comes first';
      throw new SupervisorError(`upgrading failed: ${message}; ${advice}`, { code, cause: error });
    }
  }

  /** What nobody serves is served by the new code as soon as somebody does. */
  async #upgradeOne(managed: ManagedDevice, { nursery }: Successor): Promise<void> {
    const device = await managed.opened.catch(() => null);
    const isServed = (): boolean =>
      this.#has(managed) && device !== null && !['degraded', 'failed', 'stopping', 'gone'].includes(device.state);
    if (!isServed()) return;
    try {
      await managed.restart(nursery);
    } catch (error) {
      if (!isServed()) return;
      const { name } = managed.config;
      const { code, message } = known(error, `restarting device ${name}`);
      const others = `${name} and the devices after it are served by the code before`;
      throw new SupervisorError(`upgrading failed: ${message}; ${others}`, { code, device: name, cause: error });
    }
  }

  async upgradeSelf(): Promise<void> {
    await this.#alone('an upgrade', 'upgrading the supervisor', async () => {
      const refuse = (reason: string, code: string): SupervisorError =>
        new SupervisorError(`upgrading the supervisor failed: ${reason}`, { code });
      if (this.#assertReplaceable === undefined) throw refuse('it runs inside another program', 'REFUSED');
      await this.#assertReplaceable();
      // A successor would find out what each was on its way to, but sooner or later.
      const moving = this.status().devices.find(({ state }) => machine[state].done !== null);
      if (moving !== undefined) throw refuse(`device ${moving.name} is ${moving.state}; try again`, 'BUSY');
      if (this.#stops > 0) throw refuse('it is stopping', 'STOPPING');
      this.#stops += 1;
      this.#endAs('replaced');
    });
  }

  /** Rejects with `BUSY` while something else like it is under way. */
  async #alone<Result>(what: 'a reload' | 'an upgrade', verb: string, act: () => Promise<Result>): Promise<Result> {
    if (this.#busy !== null) {
      throw new SupervisorError(`${verb} failed: ${this.#busy} is under way; wait for it`, { code: 'BUSY' });
    }
    this.#busy = what;
    try {
      return await act();
    } finally {
      this.#busy = null;
    }
  }

  /** With `force` the supervisor ends even when a device could not be removed; the promise rejects nevertheless. */
  async stop({ force }: { readonly force: boolean }): Promise<void> {
    await this.#left;
    this.#stops += 1;
    const devices = [...this.#devices.values()];
    let claim: Claim | null = null;
    try {
      claim = force ? null : await this.#claim(devices);
      const removals = devices.map((managed) => this.#remove(managed, { force, removeData: false }));
      const refused = (await Promise.allSettled(removals)).find(
        (outcome, index) => outcome.status === 'rejected' && this.#has(devices[index]),
      );
      if (refused?.status === 'rejected') throw known(refused.reason, 'stopping the supervisor');
    } catch (error) {
      if (force) this.#endAs('stopped');
      else this.#stops -= 1;
      throw error;
    } finally {
      await claim?.release();
    }
    this.#endAs('stopped');
  }

  /** So that all of them can be stopped, or none is. */
  #claim(devices: readonly ManagedDevice[]): Promise<Claim> {
    const ids = devices.flatMap(({ device }) => device?.blockDevice ?? []);
    return this.#context.kernel.claim(ids, 'stopping');
  }

  /** Takes the name and the id, then opens the backend; what fails leaves nothing. */
  async #open(config: DeviceConfig, left: LeftDevice | null): Promise<ManagedDevice> {
    this.#assertFree(config);
    const managed = new ManagedDevice(config, this.#context, left);
    this.#devices.set(config.name, managed);
    try {
      await managed.opened;
    } catch (error) {
      this.#devices.delete(config.name);
      throw known(error, `opening the backend of device ${config.name}`);
    }
    return managed;
  }

  async #startOne(managed: ManagedDevice): Promise<DeviceStatus> {
    const device = await managed.opened;
    await device.start();
    return device.status();
  }

  async #remove(managed: ManagedDevice, options: RemoveOptions): Promise<void> {
    const { name } = managed.config;
    try {
      await managed.remove(options);
    } catch (error) {
      const failure = known(error, `closing the backend of device ${name}`);
      this.#log.error({ device: name, code: failure.code }, failure.message);
      if (managed.device?.state === 'gone') this.#forget(managed);
      throw failure;
    }
    this.#forget(managed);
  }

  /** After an attempt that failed: data that is older than it stays. Why a removal failed is in the log. */
  async #undo(managed: ManagedDevice): Promise<void> {
    await this.#remove(managed, { force: true, removeData: managed.dataIsNew }).catch(() => undefined);
  }

  #forget(managed: ManagedDevice): void {
    if (this.#has(managed)) this.#devices.delete(managed.config.name);
  }

  #has(managed: ManagedDevice | undefined): boolean {
    return managed !== undefined && this.#devices.get(managed.config.name) === managed;
  }

  #find(verb: string, name: string): ManagedDevice {
    const managed = this.#devices.get(name);
    if (managed !== undefined) return managed;
    const message = `${verb} device ${name} failed: there is no such device; see ublk-supervisor list`;
    throw new SupervisorError(message, { code: 'NOT_FOUND', device: name });
  }

  #assertFree({ name, id }: DeviceConfig): void {
    const refuse = (reason: string, code: string): never => {
      throw new SupervisorError(`adding device ${name} failed: ${reason}`, { code, device: name });
    };
    if (this.#stops > 0) refuse('the supervisor is stopping', 'STOPPING');
    if (this.#devices.has(name)) refuse('there is a device of that name; remove it or choose another name', 'EXISTS');
    const owner = [...this.#devices.values()].find((other) => other.id === id);
    if (owner) refuse(`id ${String(id)} is that of device ${owner.config.name}; choose another id`, 'EXISTS');
  }

  #endAs(end: SupervisorEnd): void {
    if (this.#end !== null) return;
    this.#end = end;
    this.#onEnd();
  }
}

/** What a reload is to find changed: what is served may be older than the file. A size may have been changed by hand. */
function asServed(inFile: DeviceConfig, served: DeviceConfig): DeviceConfig {
  const size = configuredSize(inFile);
  return size === undefined ? served : withSize(served, size);
}

function known(error: unknown, operation: string): SupervisorError {
  if (error instanceof SupervisorError) return error;
  return new SupervisorError(`${operation} failed: ${messageOf(error)}`, { code: 'INTERNAL', cause: error });
}
