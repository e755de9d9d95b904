import type { Config, DeviceConfig } from '../config/types.js';
import type { ErrorCode } from '../error-codes.js';
import { failureOf, SupervisorError } from '../errors.js';
import type { Clock } from '../timing/clock.js';
import type { CrashFiles } from './crashes/crash-files.js';
import type { Log } from '../log/log.js';
import { fewAtOnce } from '../timing/few-at-once.js';
import type { Claim, Kernel } from './ublk/kernel.js';
import { configuredSize } from './reload-plan.js';
import { reload } from './reload.js';
import { ManagedDevice, withSize, type ManagedDeviceContext, type OpensStores } from './managed-device.js';
import type { LeftDevice } from './adoption.js';
import { machine } from './device/machine.js';
import type { Successor } from './zygote/zygote-keeper.js';
import { startInOrder, startPatiently, type StartFailure } from './start.js';
import { upgrade } from './upgrade.js';
import { Turns } from '../timing/turns.js';
import type { Journal } from './journal.js';
import type {
  DeviceChange,
  DeviceStatus,
  FaultHitStatus,
  FaultRuleStatus,
  PlanEntry,
  Status,
  SupervisorApi,
  SupervisorStatus,
} from '../api/status.js';

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
  readonly onDeviceChange?: (device: DeviceChange) => void;
  readonly onPartitionsChange?: (device: string, id: number, numbers: readonly number[]) => void;
  readonly stores: OpensStores;
  readonly clock?: Clock;
  readonly journal?: Pick<Journal, 'write' | 'remove'>;
  /** What an earlier supervisor left, given the devices of the configuration; called once, before any device is made. */
  readonly findLeftDevices?: (configured: readonly DeviceConfig[]) => Promise<readonly LeftDevice[]>;
  readonly crashFiles?: CrashFiles | null;
}

/** So long others wait for a device that stops. */
const STOP_PATIENCE_MS = 5000;
/** So long others that recover wait for one of them. */
const RECOVERY_PATIENCE_MS = 5000;
/** `replaced`: its devices are served on, for the successor that takes its process over. */
export type SupervisorEnd = 'stopped' | 'replaced';

const NO_JOURNAL = { write: () => undefined, remove: () => undefined };

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
  /** The names of these devices, by what the kernel knows them by. */
  readonly #cookies = new Map<bigint, string>();
  /** Until it is known there is more to be stopped than the devices. */
  #left: Promise<readonly LeftDevice[]> = Promise.resolve([]);
  /** Stops under way or done; while there are any nothing is added. */
  #stops = 0;
  #end: SupervisorEnd | null = null;
  /** What is under way that changes more than one device. */
  #busy: 'a reload' | 'an upgrade' | null = null;

  constructor(options: SupervisorOptions) {
    const { kernel, log, stores, clock, onEnd = () => undefined } = options;
    const { journal = NO_JOURNAL, crashFiles = null } = options;
    const { onDeviceChange = () => undefined, onPartitionsChange = () => undefined } = options;
    const turns = new Turns(RECOVERY_PATIENCE_MS);
    this.#context = { kernel, turns, log, stores, clock, journal, crashFiles, onDeviceChange, onPartitionsChange };
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
   * Resolves when every device of the configuration is live or has failed, or waits for a backend that takes its time;
   * returns the failures. A device that failed stays, to be recovered or removed; one whose backend could not be opened
   * starts by itself when it can be.
   */
  async start({ devices }: Config): Promise<StartFailure[]> {
    const failures: StartFailure[] = [];
    this.#left = this.#findLeftDevices(devices);
    const left = await this.#left;
    const inFile = new Map(devices.map((config) => [config.name, config]));
    const leftNames = new Set(left.map(({ config }) => config.name));
    const fresh = devices.filter(({ name }) => !leftNames.has(name));
    const made = (config: DeviceConfig, from: LeftDevice | null): ManagedDevice[] => {
      try {
        this.#assertNameFree(config);
      } catch (error) {
        const failure = { name: config.name, error: failureOf(error, `adding device ${config.name}`) };
        this.#log.error({ device: failure.name, code: failure.error.code }, failure.error.message);
        failures.push(failure);
        return [];
      }
      const managed = this.#make(config, from);
      const wanted = inFile.get(config.name);
      managed.configured = wanted === undefined ? null : asServed(wanted, managed.config);
      return [managed];
    };
    const adopted = left.flatMap((one) => made(one.config, one));
    const added = fresh.flatMap((config) => made(config, null));
    const starting = [...adopted.map((managed) => startPatiently(managed, this.#log)), startInOrder(added, this.#log)];
    failures.push(...(await Promise.all(starting)).flat());
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
    return { supervisor: this.supervisorStatus(), devices: [...this.deviceStatuses()] };
  }

  supervisorStatus(): SupervisorStatus {
    return { pid: process.pid, version: this.#version, kernel: this.#kernelRelease };
  }

  *deviceStatuses(): Generator<DeviceStatus> {
    // One that is replaced by another of its name meanwhile would else come twice.
    for (const managed of [...this.#devices.values()]) if (this.#has(managed)) yield managed.device.status();
  }

  deviceStatus(name: string): DeviceStatus | null {
    return this.#devices.get(name)?.device.status() ?? null;
  }

  async add(input: unknown): Promise<DeviceStatus> {
    const config = this.#parseDevice(input);
    this.#assertFree(config);
    const managed = this.#make(config, null);
    try {
      await managed.start();
    } catch (error) {
      await this.#undo(managed);
      throw error;
    }
    return managed.device.status();
  }

  async remove(name: string, options: RemoveOptions): Promise<void> {
    await this.#remove(this.#find('removing', name), options);
  }

  async recover(name: string, options: { readonly clearQuarantine?: boolean } = {}): Promise<DeviceStatus> {
    const { device } = this.#find('recovering', name);
    await device.recover(options);
    return device.status();
  }

  async restart(name: string): Promise<DeviceStatus> {
    const managed = this.#find('restarting', name);
    await managed.restart();
    return managed.device.status();
  }

  async resize(
    name: string,
    { size, force }: { readonly size: number; readonly force: boolean },
  ): Promise<DeviceStatus> {
    const managed = this.#find('resizing', name);
    await managed.resize(size, force);
    return managed.device.status();
  }

  async lookForPartitions(name: string): Promise<readonly string[]> {
    return this.#find('looking for partitions of', name).lookForPartitions();
  }

  addFault(name: string, rule: unknown): string {
    return this.#find('adding a fault to', name).device.faults.add(rule).id;
  }

  faults(name: string): readonly FaultRuleStatus[] {
    return this.#find('listing the faults of', name).device.faults.status();
  }

  removeFault(name: string, id: string | null): void {
    const { faults } = this.#find('removing a fault of', name).device;
    if (id === null) faults.clear();
    else faults.remove(id);
  }

  faultLog(name: string, after: number): readonly FaultHitStatus[] {
    return this.#find('reading the fault log of', name).device.faultLog(after);
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
    const refuse = (reason: string, code: ErrorCode): SupervisorError =>
      new SupervisorError(`reloading failed: ${reason}`, { code });
    const loadConfig = this.#loadConfig;
    if (loadConfig === undefined) throw refuse('this supervisor has no configuration file', 'REFUSED');
    return this.#alone('a reload', 'reloading', async () => {
      const { devices } = await loadConfig();
      if (this.#stops > 0) throw refuse('the supervisor is stopping', 'STOPPING');
      const target = {
        devices: [...this.#devices.values()],
        open: (config: DeviceConfig) => this.#open(config),
        start: (managed: ManagedDevice) => managed.start(),
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
    const startSuccessor = this.#startSuccessor;
    if (startSuccessor === undefined) throw new TypeError('nothing to upgrade to');
    const has = (managed: ManagedDevice): boolean => this.#has(managed);
    await this.#alone('an upgrade', 'upgrading', () =>
      upgrade({ devices: this.#devices.values(), has, startSuccessor }),
    );
  }

  async upgradeSelf(): Promise<void> {
    await this.#alone('an upgrade', 'upgrading the supervisor', async () => {
      const refuse = (reason: string, code: ErrorCode): SupervisorError =>
        new SupervisorError(`upgrading the supervisor failed: ${reason}`, { code });
      if (this.#assertReplaceable === undefined) throw refuse('it runs inside another program', 'REFUSED');
      await this.#assertReplaceable();
      // A successor would find out what each was on its way to, but sooner or later.
      for (const [name, { device }] of this.#devices) {
        if (machine[device.state].done !== null) throw refuse(`device ${name} is ${device.state}; try again`, 'BUSY');
      }
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
      const refusals: unknown[] = [];
      const remove = async (managed: ManagedDevice): Promise<void> => {
        try {
          await this.#remove(managed, { force, removeData: false });
        } catch (error) {
          if (this.#has(managed)) refusals.push(error);
        }
      };
      await fewAtOnce(devices, remove, STOP_PATIENCE_MS);
      if (refusals.length > 0) throw failureOf(refusals[0], 'stopping the supervisor');
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
    const ids = devices.flatMap(({ device }) => device.blockDevice ?? []);
    return this.#context.kernel.claim(ids, 'stopping');
  }

  /** Takes the name and the id, then opens the backend; what fails leaves nothing. */
  async #open(config: DeviceConfig): Promise<ManagedDevice> {
    this.#assertFree(config);
    const managed = this.#make(config, null);
    try {
      await managed.device.openSoon();
    } catch (error) {
      await this.#undo(managed);
      throw error;
    }
    return managed;
  }

  #make(config: DeviceConfig, left: LeftDevice | null): ManagedDevice {
    const managed = new ManagedDevice(config, this.#context, left);
    this.#devices.set(config.name, managed);
    this.#cookies.set(this.#context.kernel.cookieOf(config.name), config.name);
    return managed;
  }

  async #remove(managed: ManagedDevice, options: RemoveOptions): Promise<void> {
    const { name } = managed.config;
    try {
      await managed.remove(options);
    } catch (error) {
      const failure = failureOf(error, `closing the backend of device ${name}`);
      this.#log.error({ device: name, code: failure.code }, failure.message);
      if (managed.device.state === 'gone') this.#forget(managed);
      throw failure;
    }
    this.#forget(managed);
  }

  /** After an attempt that failed: data that is older than it stays. Why a removal failed is in the log. */
  async #undo(managed: ManagedDevice): Promise<void> {
    await this.#remove(managed, { force: true, removeData: managed.dataIsNew }).catch(() => undefined);
  }

  #forget(managed: ManagedDevice): void {
    if (!this.#has(managed)) return;
    const { name } = managed.config;
    this.#devices.delete(name);
    this.#cookies.delete(this.#context.kernel.cookieOf(name));
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
    this.#assertNameFree({ name });
    const owner = [...this.#devices.values()].find((other) => other.id === id);
    if (owner === undefined) return;
    throw notAdded(name, `id ${String(id)} is that of device ${owner.config.name}; choose another id`, 'EXISTS');
  }

  #assertNameFree({ name }: Pick<DeviceConfig, 'name'>): void {
    if (this.#stops > 0) throw notAdded(name, 'the supervisor is stopping', 'STOPPING');
    if (this.#devices.has(name)) {
      throw notAdded(name, 'there is a device of that name; remove it or choose another name', 'EXISTS');
    }
    const other = this.#cookies.get(this.#context.kernel.cookieOf(name));
    if (other === undefined) return;
    throw notAdded(name, `the kernel could not tell it from device ${other}; choose another name`, 'EXISTS');
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
  const sized = size === undefined ? served : withSize(served, size);
  // Left out, it is whatever the device has.
  return inFile.blockSize === undefined ? { ...sized, blockSize: undefined } : sized;
}

function notAdded(device: string, reason: string, code: ErrorCode): SupervisorError {
  return new SupervisorError(`adding device ${device} failed: ${reason}`, { code, device });
}
