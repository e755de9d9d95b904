import { messageOf, SupervisorError } from '../errors.js';
import type { Clock } from './clock.js';
import { EXIT_UNLOADABLE } from '../queue-proc/messages.js';
import { describeExit } from './device-history.js';
import type { DeviceSpec, ExitStatus, Generation, GrantedDevice, Kernel, QueueReport } from './kernel.js';
import type { Log } from './device-log.js';
import type { DeviceState, Step } from './machine.js';
import type { QueueStatus } from './status.js';

/** How long queue processes get to end by themselves after STOP_DEV. */
const EXIT_GRACE_MS = 1000;

export type KernelStep = Exclude<Step, 'backOff' | 'checkBackend'>;

export interface StepContext {
  /** Stop the device even while somebody uses it. */
  readonly force: boolean;
  /** Ends a startDevice that is no longer wanted. */
  readonly cancelStart: AbortSignal;
}

interface KernelDeviceOptions {
  readonly spec: DeviceSpec;
  readonly kernel: Kernel;
  readonly clock: Clock;
  readonly log: Log;
  /** The first exit of a generation that nobody asked to end. */
  readonly onExit: (status: ExitStatus) => void;
  readonly onReport: (report: QueueReport) => void;
}

/** One device as the kernel and its queue processes have it, and the machine's steps, which change that. */
export class KernelDevice {
  readonly #spec: DeviceSpec;
  readonly #kernel: Kernel;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #onExit: (status: ExitStatus) => void;
  readonly #onReport: (report: QueueReport) => void;
  readonly #steps: Readonly<Record<KernelStep, (context: StepContext) => Promise<void>>>;

  #granted: GrantedDevice | null = null;
  #generation: Generation | null = null;
  #generationNumber = 0;
  /** The current generation's end is our doing. */
  #ending = false;
  /** START_DEV succeeded and nothing was sent since that ends the device. */
  #started = false;
  /** The current generation was seen serving and nobody ended it. */
  #serving = false;
  /** START_USER_RECOVERY succeeded and no generation fetched since. */
  #recoveryBegun = false;
  #lost = false;

  constructor({ spec, kernel, clock, log, onExit, onReport }: KernelDeviceOptions) {
    this.#spec = spec;
    this.#kernel = kernel;
    this.#clock = clock;
    this.#log = log;
    this.#onExit = onExit;
    this.#onReport = onReport;
    this.#steps = {
      addDevice: () => this.#addDevice(),
      setParameters: () => this.#kernel.setParameters(this.#id(), this.#spec),
      spawn: () => this.#spawn(),
      startDevice: ({ cancelStart }) => this.#startDevice(cancelStart),
      killGeneration: () => this.#kill(),
      checkRecoverable: () => this.#checkRecoverable(),
      beginRecovery: () => this.#beginRecovery(),
      endRecovery: () => this.#endRecovery(),
      assertUnused: ({ force }) => (force ? Promise.resolve() : this.assertUnused()),
      killUnlessServing: () => (this.#serving && !this.exited ? Promise.resolve() : this.#kill()),
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
    return this.#started;
  }

  get generationNumber(): number {
    return this.#generationNumber;
  }

  /** A queue process of the serving generation is gone. */
  get exited(): boolean {
    return this.#serving && this.#generation?.exited.aborted === true;
  }

  /** Resolves when no process is left of the current generation, if there is one. */
  get allExited(): Promise<void> {
    return this.#generation?.allExited ?? Promise.resolve();
  }

  /** The state in which the device is left alone as it now is. */
  get rest(): DeviceState {
    if (!this.#started) return 'failed';
    return this.#serving ? 'live' : 'degraded';
  }

  queueStatus(): QueueStatus[] {
    return this.#granted === null ? [] : this.#kernel.queueStatus(this.#granted, this.#generation);
  }

  async assertUnused(): Promise<void> {
    if (this.#started) await this.#kernel.assertUnused(this.#id());
  }

  run(step: KernelStep, context: StepContext): Promise<void> {
    return this.#steps[step](context);
  }

  async #addDevice(): Promise<void> {
    this.#granted = await this.#kernel.addDevice(this.#spec);
  }

  async #spawn(): Promise<void> {
    this.#generationNumber += 1;
    const generation = await this.#kernel.spawn(this.#device(), this.#spec, this.#generationNumber, this.#onReport);
    this.#generation = generation;
    this.#ending = false;
    const { exited } = generation;
    if (exited.aborted) this.#reportExit();
    else {
      const onAbort = (): void => {
        this.#reportExit();
      };
      exited.addEventListener('abort', onAbort, { once: true });
    }
  }

  #reportExit(): void {
    const exited = this.#generation?.exited;
    if (exited?.aborted === true && !this.#ending) this.#onExit(exited.reason as ExitStatus);
  }

  async #startDevice(cancelStart: AbortSignal): Promise<void> {
    await this.#serve('starting', [cancelStart], (device, signal) => this.#kernel.startDevice(device, signal));
    this.#started = true;
  }

  async #endRecovery(): Promise<void> {
    await this.#serve('recovering', [], (device, signal) => this.#kernel.endRecovery(device, signal));
    this.#recoveryBegun = false;
  }

  /** Runs a command that waits for every FETCH, which never come once a queue process is gone. */
  async #serve(
    verb: string,
    cancels: readonly AbortSignal[],
    command: (device: GrantedDevice, signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    const exited = this.#generation?.exited;
    if (exited === undefined) throw new TypeError(`${verb} ${this.#spec.name} without a generation`);
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
    this.#serving = true;
  }

  /** Rejects when a process is left; the generation stays then and the kernel must not be asked anything. */
  async #kill(): Promise<void> {
    const generation = this.#generation;
    if (generation === null) return;
    this.#serving = false;
    this.#ending = true;
    await generation.kill();
    this.#generation = null;
    if (!this.#recoveryBegun) return;
    // Only now, with all of its processes dead, does a replacement's phase no longer change.
    const phase = generation.phase();
    this.#lost = phase === 'fetching' && this.#kernel.quirks.midFetchDeathIsFatal;
    this.#recoveryBegun = phase === 'preparing';
  }

  #checkRecoverable(): Promise<void> {
    if (!this.#lost) return Promise.resolve();
    const reason =
      'a replacement died while it was fetching, after which this kernel cannot recover the device; ' +
      'it has to be made anew';
    return Promise.reject(this.#error('recovering', reason, 'LOST'));
  }

  async #beginRecovery(): Promise<void> {
    if (this.#recoveryBegun && this.#kernel.quirks.recoveryBeginsOnce) return;
    await this.#kernel.beginRecovery(this.#id());
    this.#recoveryBegun = true;
  }

  async #stopDevice(force: boolean): Promise<void> {
    if (!this.#started) return;
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
      this.#log.warn({ device: this.#spec.name, code }, messageOf(error));
      // The command may still be under way and wait for these processes; their death releases it.
      this.#started = false;
      await this.#kill();
    } finally {
      answered.abort();
    }
    this.#started = false;
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
        { device: this.#spec.name, id },
        `device ${this.#spec.name} is still open; its id goes with its last user`,
      );
    } catch (error) {
      if (!(error instanceof SupervisorError && error.code === 'ENODEV')) throw error;
    }
  }

  #release(): Promise<void> {
    if (this.#granted !== null) this.#kernel.release(this.#granted.id);
    this.#granted = null;
    this.#recoveryBegun = false;
    this.#lost = false;
    return Promise.resolve();
  }

  #device(): GrantedDevice {
    if (this.#granted === null) throw new TypeError(`device ${this.#spec.name} is not in the kernel`);
    return this.#granted;
  }

  #id(): number {
    return this.#device().id;
  }

  #error(verb: string, reason: string, code: string, cause?: unknown): SupervisorError {
    const device = this.#spec.name;
    return new SupervisorError(`${verb} device ${device} failed: ${reason}`, { code, device, cause });
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise((resolve) => {
    signal.addEventListener('abort', resolve, { once: true });
  });
}
