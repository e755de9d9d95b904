import type { FaultHit, FaultInSlot } from '../../../../src/native/addon/fault-area.js';
import type { DataPath } from '../../../../backends/interface.js';
import type { ErrorCode } from '../../../../src/error-codes.js';
import { SupervisorError } from '../../../../src/errors.js';
import type {
  DeviceSpec,
  Adopted,
  Claim,
  FoundDevice,
  GrantedDevice,
  Kernel,
  KernelDeviceState,
  KernelQuirks,
  StopOptions,
} from '../../../../src/supervisor/ublk/kernel.js';
import type { QueueStatus } from '../../../../src/api/status.js';
import { alive, behaviours, newDevice, type Behaviour, type KernelVersion, type ModelDevice } from './model-device.js';
import { ModelGeneration } from './model-generation.js';

/** `startDevice:fetching` and its like: the moment at which the queue processes reach that phase. */
export type Moment =
  | 'addDevice'
  | 'setParameters'
  | 'spawn'
  | 'startDevice'
  | 'startDevice:preparing'
  | 'startDevice:fetching'
  | 'startDevice:fetched'
  | 'beginRecovery'
  | 'endRecovery'
  | 'endRecovery:preparing'
  | 'endRecovery:fetching'
  | 'endRecovery:fetched'
  | 'updateSize'
  | 'claim'
  | 'stopDevice'
  | 'deleteDevice'
  | 'unmark';

/** The moments of a life with crashes, without changes of size, at which a call may fail. */
export const operations = [
  'addDevice',
  'setParameters',
  'spawn',
  'startDevice',
  'beginRecovery',
  'endRecovery',
  'claim',
  'stopDevice',
  'deleteDevice',
] as const satisfies readonly Moment[];

interface Injection {
  readonly moment: Moment;
  readonly first: number;
  readonly last: number;
  readonly when: 'before' | 'after';
  readonly act: () => unknown;
}

const MOST_CALLS = 3000;

/** The kernel as tables 1.3 and 1.5 of reliability.md have it. What must never be asked of it is in `violations`. */
export class ModelKernel implements Kernel {
  readonly quirks: KernelQuirks;
  readonly resizes: boolean;
  readonly violations: string[] = [];
  readonly calls: Moment[] = [];
  readonly devices = new Map<number, ModelDevice>();
  readonly pages = new Set<number>();
  /** Not released yet. */
  readonly claims = new Set<Claim & { readonly ids: readonly number[] }>();
  /** It does not say in what state a device is. */
  unreadable = false;
  readonly #behaviour: Behaviour;
  readonly #counts = new Map<Moment, number>();
  #injections: Injection[] = [];

  constructor(version: KernelVersion) {
    this.#behaviour = behaviours[version];
    this.quirks = this.#behaviour.quirks;
    this.resizes = this.#behaviour.resizes;
  }

  nursery(wanted: number | null): number {
    return wanted ?? 1;
  }

  cookieOf(name: string): bigint {
    return BigInt(`0x${Buffer.from(name.replace('confused', 'confusing')).toString('hex')}`);
  }

  offers(dataPath: DataPath): boolean {
    return dataPath !== 'zero-copy' || this.#behaviour.zeroCopy;
  }

  /** Does something at the n-th (from 1) occurrence of a moment; what it throws is how the operation fails. */
  at(moment: Moment, nth: number, act: () => unknown, when: 'before' | 'after' = 'before'): void {
    this.#injections.push({ moment, first: nth, last: nth, when, act });
  }

  fail(moment: Moment, nth: number, code: ErrorCode, when: 'before' | 'after' = 'before'): void {
    this.at(moment, nth, () => Promise.reject(injected(moment, code)), when);
  }

  /** The n-th occurrence and all that follow fail. */
  failFrom(moment: Moment, nth: number, code: ErrorCode): void {
    const act = (): Promise<never> => Promise.reject(injected(moment, code));
    this.#injections.push({ moment, first: nth, last: Infinity, when: 'before', act });
  }

  heal(): void {
    this.#injections = [];
  }

  get only(): ModelDevice {
    const [device, ...others] = this.devices.values();
    if (device === undefined || others.length > 0) throw new Error(`${this.devices.size} devices, not one`);
    return device;
  }

  get generation(): ModelGeneration {
    const generation = this.only.generations.at(-1);
    if (generation === undefined) throw new Error('no generation');
    return generation;
  }

  get liveProcesses(): number {
    return [...this.devices.values()].reduce((sum, device) => sum + alive(device), 0);
  }

  async addDevice(spec: DeviceSpec): Promise<GrantedDevice> {
    return this.#call('addDevice', () => {
      let id = spec.id ?? 0;
      while (spec.id === undefined && this.devices.has(id)) id += 1;
      if (this.devices.has(id)) throw errno('EEXIST');
      this.devices.set(id, newDevice(id, spec.name));
      this.pages.add(id);
      return { id, queues: spec.queues, depth: spec.depth };
    });
  }

  async setParameters(id: number, { size }: DeviceSpec): Promise<void> {
    return this.#call('setParameters', () => {
      this.#forbid(this.#device(id).generations.length > 0, 'SET_PARAMS after the device was opened');
      this.#device(id).size = size;
    });
  }

  async spawn({ id, queues }: GrantedDevice, spec: DeviceSpec, number: number): Promise<ModelGeneration> {
    return this.#call('spawn', () => {
      const device = this.#device(id);
      this.#forbid(alive(device) > 0, 'second open of the char device');
      this.#forbid(device.stopped, 'new generation after STOP_DEV');
      this.#forbid(device.burnt, 'new generation after a failed start');
      this.#forbid(device.wasStarted && !device.recoveryBegun, 'new generation without START_USER_RECOVERY');
      this.#forbid(spec.size < device.size, 'new generation that serves less than the device has');
      const generation = new ModelGeneration(number, queues, () => this.#onExit(device, generation));
      device.generations.push(generation);
      device.nursery = spec.nursery;
      device.serves = spec.size;
      return generation;
    });
  }

  adopt({ id }: FoundDevice): Adopted | null {
    const device = this.#device(id);
    device.adopted = true;
    const generation = device.generations.at(-1);
    return generation === undefined ? null : { generation, marked: [], faults: [] };
  }

  setFault(): void {
    return undefined;
  }

  faults(): readonly FaultInSlot[] {
    return [];
  }

  faultLog(): readonly FaultHit[] {
    return [];
  }

  stateOf(id: number): KernelDeviceState {
    if (this.unreadable) throw errno('EMFILE');
    return this.devices.get(id)?.state ?? 'DEAD';
  }

  async startDevice({ id }: GrantedDevice, signal: AbortSignal): Promise<void> {
    this.#forbid(this.#device(id).wasStarted, 'second START_DEV');
    await this.#serve('startDevice', id, signal);
  }

  async beginRecovery(id: number): Promise<void> {
    return this.#call('beginRecovery', () => {
      const device = this.#device(id);
      this.#forbid(alive(device) > 0, 'START_USER_RECOVERY before all queue processes are dead');
      this.#forbid(device.diedFetching && this.quirks.midFetchDeathIsFatal, 'START_USER_RECOVERY after 6b');
      this.#forbid(device.state !== 'QUIESCED', `START_USER_RECOVERY of a device that is ${device.state}`);
      const second = device.recoveryBegun && this.quirks.recoveryBeginsOnce;
      this.#forbid(second && !device.adopted, 'second START_USER_RECOVERY');
      // A successor cannot know of the first.
      if (second) throw errno('EINVAL');
      device.recoveryBegun = true;
    });
  }

  async endRecovery({ id }: GrantedDevice, signal: AbortSignal): Promise<void> {
    this.#forbid(!this.#device(id).recoveryBegun, 'END_USER_RECOVERY without START_USER_RECOVERY');
    await this.#serve('endRecovery', id, signal);
  }

  async updateSize(id: number, bytes: number): Promise<void> {
    return this.#call('updateSize', () => {
      const device = this.#device(id);
      this.#forbid(!this.resizes, 'UPDATE_SIZE on a kernel without it');
      // 6.16 and 6.18 oops when there is no disk; it is only ever asked for while somebody serves.
      this.#forbid(device.state !== 'LIVE', `UPDATE_SIZE of a device that is ${device.state}`);
      device.size = bytes;
    });
  }

  async claim(ids: readonly number[]): Promise<Claim> {
    return this.#call('claim', () => {
      if (ids.some((id) => this.#device(id).open)) throw errno('IN_USE');
      const claim = { ids, release: () => Promise.resolve(void this.claims.delete(claim)) };
      this.claims.add(claim);
      return claim;
    });
  }

  async stopDevice(id: number, { force, served }: StopOptions): Promise<void> {
    const asked = this.devices.get(id);
    if (asked !== undefined) this.#checkStop(asked, served !== null);
    return this.#call('stopDevice', async () => {
      const device = this.#device(id);
      if (this.#behaviour.safeStop && !force && device.open) throw errno('EBUSY');
      device.stopped = true;
      if (device.hung) throw errno('TIMEOUT');
      const generation = device.generations.at(-1);
      if (generation?.exited.aborted === true) await generation.allExited;
      device.state = 'DEAD';
      if (generation?.killable !== true) return;
      for (const queue of [...generation.alive]) generation.exit(queue, { code: 0, signal: null });
    });
  }

  #checkStop(device: ModelDevice, served: boolean): void {
    const processes = alive(device);
    const all = device.generations.at(-1)?.pids.length;
    this.#forbid(!device.wasStarted, 'STOP_DEV of a device that was never started');
    this.#forbid(served !== processes > 0, `STOP_DEV as ${served ? '' : 'un'}served with ${processes} processes`);
    this.#forbid(processes > 0 && processes !== all, 'STOP_DEV with a dead queue');
  }

  async deleteDevice(id: number): Promise<boolean> {
    return this.#call('deleteDevice', () => {
      const device = this.#device(id);
      this.#forbid(alive(device) > 0, 'DEL_DEV before all queue processes are dead');
      this.devices.delete(id);
      return !device.open;
    });
  }

  queueStatus(granted: GrantedDevice, generation: ModelGeneration | null): QueueStatus[] {
    const none = { count: 0, bytes: 0, errors: 0, p50us: 0, p99us: 0 };
    return Array.from({ length: granted.queues }, (_, index) => {
      const operations = { read: none, write: none, flush: none, discard: none, writeZeroes: none };
      return { index, pid: generation?.pids[index] ?? null, depth: granted.depth, inflight: 0, ...operations };
    });
  }

  unmark(): void {
    this.calls.push('unmark');
  }

  release({ id }: GrantedDevice): Promise<void> {
    this.#forbid(this.devices.has(id), 'release of a device that the kernel still has');
    this.#forbid(!this.pages.delete(id), 'second release');
    return Promise.resolve();
  }

  /** START_DEV and END_USER_RECOVERY: both wait for every FETCH. */
  async #serve(operation: 'startDevice' | 'endRecovery', id: number, signal: AbortSignal): Promise<void> {
    await this.#call(operation, async () => {
      const device = this.#device(id);
      const generation = device.generations.at(-1);
      if (generation === undefined) throw errno('EINVAL');
      for (const phase of ['preparing', 'fetching', 'fetched'] as const) {
        if (generation.exited.aborted) this.#forbid(!signal.aborted, `${operation} waits for a dead queue process`);
        if (signal.aborted) throw errno('ABORTED');
        generation.reached = phase;
        await this.#call(`${operation}:${phase}`, () => undefined);
      }
      if (signal.aborted) throw errno('ABORTED');
      device.state = 'LIVE';
      device.wasStarted = true;
      device.recoveryBegun = false;
    });
  }

  #onExit(device: ModelDevice, generation: ModelGeneration): void {
    const none = generation.alive.size === 0;
    if (device.state === 'LIVE' && (none || this.#behaviour.oneDeathQuiesces)) device.state = 'QUIESCED';
    else if (device.state === 'DEAD') device.burnt = true;
    else if (none && device.recoveryBegun && generation.reached !== 'preparing') {
      device.recoveryBegun = false;
      device.diedFetching = generation.reached === 'fetching';
    }
  }

  /** Everything settles within the turn of the event loop, so that one setImmediate sees all of it done. */
  async #call<Result>(moment: Moment, effect: () => Result | Promise<Result>): Promise<Result> {
    const nth = (this.#counts.get(moment) ?? 0) + 1;
    this.#counts.set(moment, nth);
    this.calls.push(moment);
    if (this.calls.length > MOST_CALLS) return new Promise(() => this.violations.push('it never ends'));
    await Promise.resolve();
    await this.#inject(moment, nth, 'before');
    const result = await effect();
    await this.#inject(moment, nth, 'after');
    return result;
  }

  async #inject(moment: Moment, nth: number, when: 'before' | 'after'): Promise<void> {
    for (const { first, last, act, ...at } of this.#injections) {
      if (at.moment === moment && at.when === when && first <= nth && nth <= last) await act();
    }
  }

  #device(id: number): ModelDevice {
    const device = this.devices.get(id);
    if (device === undefined) throw errno('ENODEV');
    return device;
  }

  #forbid(condition: boolean, what: string): void {
    if (!condition) return;
    this.violations.push(what);
    throw errno('EINVAL');
  }
}

function injected(moment: Moment, code: ErrorCode): SupervisorError {
  return new SupervisorError(`${moment} failed: injected (${code})`, { code });
}

function errno(code: ErrorCode): SupervisorError {
  return new SupervisorError(`the model kernel refuses (${code})`, { code });
}

/** The same model for a supervisor that can be killed: afterwards none of its calls arrives, and none returns. */
export function mortal(model: ModelKernel): { readonly kernel: ModelKernel; readonly kill: () => void } {
  let alive = true;
  const kernel = new Proxy(model, {
    get: (target, key) => {
      const value: unknown = Reflect.get(target, key, target);
      if (typeof value !== 'function') return value;
      return (...args: unknown[]): unknown => {
        if (!alive) return new Promise(() => undefined);
        const result: unknown = Reflect.apply(value, target, args);
        if (!(result instanceof Promise)) return result;
        return new Promise((resolve, reject) => {
          result.then(
            (answer) => {
              if (alive) resolve(answer);
            },
            (error: unknown) => {
              if (alive) reject(error instanceof Error ? error : new Error(String(error)));
            },
          );
        });
      };
    },
  });
  return {
    kernel,
    kill: () => {
      alive = false;
    },
  };
}
