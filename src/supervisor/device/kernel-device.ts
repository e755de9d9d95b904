import type { ErrorCode } from '../../error-codes.js';
import { messageOf, SupervisorError } from '../../errors.js';
import type { Clock } from '../../timing/clock.js';
import { EXIT_UNLOADABLE } from '../../channel/messages.js';
import { describeExit } from './history.js';
import type { FaultChange, FaultHit, FaultInSlot } from '../../native/addon/fault-area.js';
import { aborted, type Interrupt } from '../../timing/interrupt.js';
import type {
  Adopted,
  Death,
  DeviceSpec,
  FoundDevice,
  Generation,
  GrantedDevice,
  Kernel,
  QueueReport,
  RequestRules,
} from '../ublk/kernel.js';
import type { Log } from '../../log/log.js';
import type { Step } from './machine.js';
import type { DeviceState, ExitStatus, QueueStatus } from '../../api/status.js';

/** How long queue processes get to end by themselves after STOP_DEV. */
const EXIT_GRACE_MS = 1000;

/** How long a generation that hands over may take to finish what its backend has; the rest of it is issued again. */
const DRAIN_DEADLINE_MS = 5000;

export type KernelStep = Exclude<Step, 'backOff' | 'openBackend' | 'checkBackend' | 'takeTurn' | 'exchange'>;

export interface StepContext {
  /** Stop or shrink the device even while it is in use. */
  readonly force: boolean;
  /** Ends a startDevice that is no longer wanted. */
  readonly cancelStart: Interrupt;
}

interface KernelDeviceOptions {
  readonly spec: DeviceSpec;
  /** What an earlier supervisor left of the device; null: nothing. */
  readonly found: FoundDevice | null;
  readonly kernel: Kernel;
  readonly clock: Clock;
  readonly log: Log;
  /** Called at the first exit of a generation that we did not end. */
  readonly onExit: (status: ExitStatus) => void;
  /** Called when all processes of such a generation are dead. */
  readonly onDeath: (death: Death) => void;
  readonly rules: () => RequestRules;
  /** What an earlier supervisor had marked, and its fault rules. */
  readonly onAdopted: (adopted: Pick<Adopted, 'marked' | 'faults'>) => void;
  readonly onReport: (report: QueueReport) => void;
}

/** How far the kernel's device is, as the commands and deaths that we know of left it. */
type KernelSide =
  /** There is none, or it was never started, or is stopped. */
  | 'unstarted'
  /** The current generation was seen serving it, and we did not end it. */
  | 'served'
  | 'unserved'
  /** START_USER_RECOVERY succeeded, and no generation has fetched since. */
  | 'recovering'
  /** No generation can serve it any more. */
  | 'lost';

/** One device as the kernel and its queue processes have it, and the machine's steps, which change that. */
export class KernelDevice {
  /** What the next generation serves. */
  spec: DeviceSpec;
  readonly #kernel: Kernel;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #onExit: (status: ExitStatus) => void;
  readonly #onDeath: (death: Death) => void;
  readonly #rules: () => RequestRules;
  readonly #onAdopted: (adopted: Pick<Adopted, 'marked' | 'faults'>) => void;
  readonly #onReport: (report: QueueReport) => void;
  readonly #steps: Readonly<Record<KernelStep, (context: StepContext) => Promise<void>>>;

  #granted: GrantedDevice | null = null;
  #generation: Generation | null = null;
  #generationNumber = 0;
  /** The current generation's end is our doing. */
  #ending = false;
  /** The first exit of the current generation, unless we ended it. */
  #exit: ExitStatus | null = null;
  #side: KernelSide = 'unstarted';
  readonly #found: FoundDevice | null;
  /** The size that the kernel was told last. */
  #announcedSize: number;

  constructor({ spec, found, kernel, clock, log, ...hooks }: KernelDeviceOptions) {
    this.spec = spec;
    this.#announcedSize = found?.size ?? 0;
    this.#kernel = kernel;
    this.#clock = clock;
    this.#log = log;
    this.#onExit = hooks.onExit;
    this.#onDeath = hooks.onDeath;
    this.#rules = hooks.rules;
    this.#onAdopted = hooks.onAdopted;
    this.#onReport = hooks.onReport;
    this.#found = found;
    this.#granted = found;
    if (found !== null && found.state !== 'DEAD') this.#side = 'unserved';
    this.#steps = {
      adopt: () => this.#adopt(),
      addDevice: () => this.#addDevice(),
      setParameters: () => this.#setParameters(),
      spawn: () => this.#spawn(),
      startDevice: ({ cancelStart }) => this.#startDevice(cancelStart.signal),
      shrinkDevice: ({ force }) => this.#shrink(force),
      growDevice: () => this.#grow(),
      drainGeneration: () => this.#drain(),
      killGeneration: () => this.#kill(),
      checkRecoverable: () => this.#checkRecoverable(),
      beginRecovery: () => this.#beginRecovery(),
      endRecovery: () => this.#endRecovery(),
      assertUnused: ({ force }) => (force ? Promise.resolve() : this.#assertUnused()),
      killUnlessServing: () => (this.#side === 'served' && !this.exited ? Promise.resolve() : this.#kill()),
      stopDevice: ({ force }) => this.#stopDevice(force),
      endGeneration: () => this.#endGeneration(),
      deleteDevice: () => this.#deleteDevice(),
      release: () => this.#release(),
    };
  }

  get id(): number | null {
    return this.#granted?.id ?? null;
  }

  get started(): boolean {
    return this.#side !== 'unstarted';
  }

  get generationNumber(): number {
    return this.#generationNumber;
  }

  /** A queue process of the serving generation is gone. */
  get exited(): boolean {
    return this.#side === 'served' && this.#generation?.exited.aborted === true;
  }

  /** Resolves when no process is left of the current generation, if there is one. */
  get allExited(): Promise<void> {
    return this.#generation?.allExited ?? Promise.resolve();
  }

  /** What its generation has been waiting for longer than the request time-out; null: nothing. */
  get stalled(): string | null {
    return this.#generation?.stalled ?? null;
  }

  /** The state in which the device is left alone as it now is. */
  get rest(): DeviceState {
    if (!this.started) return 'failed';
    return this.#side === 'served' ? 'live' : 'degraded';
  }

  queueStatus(): QueueStatus[] {
    return this.#granted === null ? [] : this.#kernel.queueStatus(this.#granted, this.#generation);
  }

  /** The queues forget what was marked, at once. */
  unmark(): void {
    if (this.#granted !== null) this.#kernel.unmark(this.#granted.id);
  }

  /** Brings a change of a fault rule to the queues. */
  setFault(slot: number, rule: FaultChange | null): void {
    if (this.#granted !== null) this.#kernel.setFault(this.#granted.id, slot, rule);
  }

  faults(): readonly FaultInSlot[] {
    return this.#granted === null ? [] : this.#kernel.faults(this.#granted.id);
  }

  faultLog(after: number): readonly FaultHit[] {
    return this.#granted === null ? [] : this.#kernel.faultLog(this.#granted.id, after);
  }

  /** N of /dev/ublkbN while there is one. */
  get blockDevice(): number | null {
    return this.started ? this.id : null;
  }

  run(step: KernelStep, context: StepContext): Promise<void> {
    return this.#steps[step](context);
  }

  /**
   * Ends where the device is live. Otherwise it is for the next state to do what is to be done with what was found, which
   * the fields describe as if we had done it all ourselves.
   */
  async #adopt(): Promise<void> {
    const found = this.#found;
    if (found === null) throw new TypeError(`device ${this.spec.name} was not found in the kernel`);
    // First, so that whatever fails from here on, these are the processes that are to be ended before others serve it.
    const adopted = this.#kernel.adopt(found, this.spec, this.#onReport);
    this.#generation = adopted?.generation ?? null;
    this.#generationNumber = adopted?.generation.number ?? 0;
    if (adopted !== null) this.#onAdopted(adopted);
    // Which of them are gone already is said in this turn, but not at once.
    await Promise.resolve();
    const state = this.#kernel.stateOf(found.id);
    this.#side = state === 'DEAD' ? 'unstarted' : 'unserved';
    if (state === 'DEAD') throw this.#error('adopting', 'it was not started, or was stopped', 'DEAD');
    if (adopted === null) throw this.#error('adopting', 'nobody is left that serves it', 'EXITED');
    const { generation } = adopted;
    const fetched = generation.phase() === 'fetched';
    if (state === 'QUIESCED' && !fetched) this.#side = 'recovering';
    this.#watch(generation);
    // A backend in JavaScript may never be told what to load.
    if (!fetched) throw this.#error('adopting', 'its replacement is not ready', 'UNFINISHED');
    if (state === 'QUIESCED') await this.#endRecovery();
    else if (generation.exited.aborted) throw this.#error('adopting', 'a queue process is gone', 'EXITED');
    else this.#side = 'served';
  }

  async #addDevice(): Promise<void> {
    this.#granted = await this.#kernel.addDevice(this.spec);
  }

  async #setParameters(): Promise<void> {
    await this.#kernel.setParameters(this.#id(), this.spec);
    this.#announcedSize = this.spec.size;
  }

  /** Runs before the smaller generation serves, so that the kernel sends nothing beyond its end. */
  async #shrink(force: boolean): Promise<void> {
    if (this.spec.size >= this.#announcedSize) return;
    if (this.#side !== 'served') throw this.#error('shrinking', 'it is not live', 'NOT_LIVE');
    const claim = force ? null : await this.#kernel.claim([this.#id()], 'shrinking');
    try {
      await this.#updateSize();
    } finally {
      await claim?.release();
    }
  }

  /** Runs when the larger generation serves. */
  async #grow(): Promise<void> {
    if (this.spec.size > this.#announcedSize) await this.#updateSize();
  }

  async #updateSize(): Promise<void> {
    await this.#kernel.updateSize(this.#id(), this.spec.size);
    this.#announcedSize = this.spec.size;
  }

  async #spawn(): Promise<void> {
    this.#generationNumber += 1;
    const number = this.#generationNumber;
    const rules = this.#rules();
    this.#watch(await this.#kernel.spawn(this.#device(), this.spec, number, this.#onReport, rules, !this.started));
  }

  #watch(generation: Generation): void {
    this.#generation = generation;
    this.#exit = null;
    this.#ending = false;
    const { exited } = generation;
    if (exited.aborted) this.#reportExit();
    else {
      const onAbort = (): void => this.#reportExit();
      exited.addEventListener('abort', onAbort, { once: true });
    }
  }

  #reportExit(): void {
    const exited = this.#generation?.exited;
    if (exited?.aborted !== true || this.#ending) return;
    this.#exit = exited.reason as ExitStatus;
    this.#onExit(this.#exit);
  }

  async #startDevice(cancelStart: AbortSignal): Promise<void> {
    await this.#serve('starting', [cancelStart], (device, signal) => this.#kernel.startDevice(device, signal));
  }

  async #endRecovery(): Promise<void> {
    await this.#serve('recovering', [], (device, signal) => this.#kernel.endRecovery(device, signal));
  }

  /** Runs a command that waits for every FETCH, which never come once a queue process is gone. */
  async #serve(
    verb: string,
    cancels: readonly AbortSignal[],
    command: (device: GrantedDevice, signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const exited = this.#generation?.exited;
    if (exited === undefined) throw new TypeError(`${verb} ${this.spec.name} without a generation`);
    const signal = AbortSignal.any([exited, ...cancels]);
    try {
      if (signal.aborted) throw this.#error(verb, 'it is to be stopped', 'ABORTED');
      await command(this.#device(), signal);
    } catch (error) {
      if (!exited.aborted) throw error;
      const exit = exited.reason as ExitStatus;
      if (exit.code === EXIT_UNLOADABLE && exit.reason !== null) throw this.#error(verb, exit.reason, 'UNLOADABLE');
      throw this.#error(verb, describeExit(exit), 'EXITED', error);
    }
    this.#side = 'served';
  }

  /** The kernel issues what is not finished in time again to the next generation, as after a crash. */
  async #drain(): Promise<void> {
    if (this.#generation === null) return;
    this.#end();
    await this.#generation.drain(DRAIN_DEADLINE_MS);
  }

  /** Rejects when a process is left; the generation stays then and the kernel must not be asked anything. */
  async #kill(): Promise<void> {
    const generation = this.#generation;
    if (generation === null) return;
    this.#end();
    await generation.kill();
    this.#generation = null;
    if (this.#exit !== null) {
      this.#onDeath({ generation: generation.number, exit: this.#exit, remains: generation.remains() });
    }
    if (this.#side !== 'recovering') return;
    // Only now, with all of its processes dead, does a replacement's phase no longer change.
    const phase = generation.phase();
    if (phase === 'fetching' && this.#kernel.quirks.midFetchDeathIsFatal) this.#side = 'lost';
    else if (phase !== 'preparing') this.#side = 'unserved';
  }

  /** The current generation's end is our doing from here on. */
  #end(): void {
    if (this.#side === 'served') this.#side = 'unserved';
    this.#ending = true;
  }

  #checkRecoverable(): Promise<void> {
    if (this.#side !== 'lost') return Promise.resolve();
    const reason =
      'a replacement died while it was fetching, after which this kernel cannot recover the device; ' +
      'it has to be made anew';
    return Promise.reject(this.#error('recovering', reason, 'LOST'));
  }

  async #beginRecovery(): Promise<void> {
    if (this.#side === 'recovering' && this.#kernel.quirks.recoveryBeginsOnce) return;
    try {
      await this.#kernel.beginRecovery(this.#id());
    } catch (error) {
      const refused = error instanceof SupervisorError && error.code === 'EINVAL';
      // An earlier supervisor began it, and did not get to its next generation.
      const begun = this.#found !== null && this.#kernel.quirks.recoveryBeginsOnce && refused;
      if (!begun) throw error;
    }
    this.#side = 'recovering';
  }

  /** Rejects before anything is ended; stopDevice claims the device again. */
  async #assertUnused(): Promise<void> {
    if (this.blockDevice === null) return;
    const claim = await this.#kernel.claim([this.blockDevice], 'stopping');
    await claim.release();
  }

  async #stopDevice(force: boolean): Promise<void> {
    if (!this.started) return;
    // Looked at in the same turn in which the command is sent.
    if (this.exited) await this.#kill();
    this.#ending = true;
    const answered = new AbortController();
    void this.#endOthersAfterExit(answered.signal);
    try {
      await this.#kernel.stopDevice(this.#id(), { force, served: this.#generation?.exited ?? null });
    } catch (error) {
      const code = error instanceof SupervisorError ? error.code : '';
      const inUse = code === 'EBUSY' || code === 'IN_USE';
      if (inUse || !(force || code === 'TIMEOUT' || code === 'ENODEV')) {
        this.#ending = false;
        this.#reportExit();
        throw error;
      }
      this.#log.warn({ device: this.spec.name, code }, messageOf(error));
      // The command may still be under way and wait for these processes; their death releases it.
      this.#side = 'unstarted';
      await this.#kill();
    } finally {
      answered.abort();
    }
    this.#side = 'unstarted';
  }

  /** STOP_DEV waits for requests of a queue whose process died in the meantime until every process is gone. */
  async #endOthersAfterExit(answered: AbortSignal): Promise<void> {
    const generation = this.#generation;
    if (generation === null) return;
    await aborted(AbortSignal.any([generation.exited, answered]));
    await this.#clock.sleep(EXIT_GRACE_MS, answered);
    // endGeneration reports a process that cannot be killed.
    if (!answered.aborted) await generation.kill().catch(() => undefined);
  }

  async #endGeneration(): Promise<void> {
    if (this.#generation === null) return;
    this.#ending = true;
    await this.#clock.sleep(EXIT_GRACE_MS, this.#generation.exited);
    await this.#kill();
  }

  async #deleteDevice(): Promise<void> {
    if (this.#granted === null) return;
    const { id } = this.#granted;
    try {
      if (await this.#kernel.deleteDevice(id)) return;
      this.#log.warn(
        { device: this.spec.name, id },
        `device ${this.spec.name} is still open; its id goes with its last user`,
      );
    } catch (error) {
      if (!(error instanceof SupervisorError && error.code === 'ENODEV')) throw error;
    }
  }

  async #release(): Promise<void> {
    if (this.#granted !== null) await this.#kernel.release(this.#granted);
    this.#granted = null;
    this.#side = 'unstarted';
  }

  #device(): GrantedDevice {
    if (this.#granted === null) throw new TypeError(`device ${this.spec.name} is not in the kernel`);
    return this.#granted;
  }

  #id(): number {
    return this.#device().id;
  }

  #error(verb: string, reason: string, code: ErrorCode, cause?: unknown): SupervisorError {
    const device = this.spec.name;
    return new SupervisorError(`${verb} device ${device} failed: ${reason}`, { code, device, cause });
  }
}
