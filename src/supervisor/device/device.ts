import type { OpenBackend } from '../../../backends/interface.js';
import type { DeviceConfig } from '../../config/types.js';
import type { ErrorCode } from '../../error-codes.js';
import { failureOf, SupervisorError } from '../../errors.js';
import { Attempts } from './attempts.js';
import { monotonicClock, type Clock } from '../../timing/clock.js';
import type { CrashFiles } from '../crashes/crash-files.js';
import { DeviceCrashes } from '../crashes/device-crashes.js';
import { describeExit, DeviceHistory } from './history.js';
import type { Log } from '../../log/log.js';
import { Waiters } from './waiters.js';
import { DeviceFaults } from './device-faults.js';
import { DeviceBackend } from './device-backend.js';
import { SelfRecovery } from './self-recovery.js';
import { deviceSpec, specOfFound, unopenedSpec, type Announced } from './spec.js';
import { assertSameDevice, type HandOver, type Served } from './hand-over.js';
import { aborted, Interrupt } from '../../timing/interrupt.js';
import type { Adopted, Death, DeviceSpec, FoundDevice, Kernel, QueueReport, RequestRules } from '../ublk/kernel.js';
import { describeRequest, requestStatus } from '../../api/operations.js';
import { machine, targetOfFailure, type AfterRemoval, type DeviceEvent } from './machine.js';
import type { Rule, Step, Target } from './machine.js';
import type { DeviceState, DeviceStatus, ExitStatus, FaultHitStatus } from '../../api/status.js';
import { KernelDevice } from './kernel-device.js';
import type { Turn, Turns } from '../../timing/turns.js';

export interface DeviceOptions {
  readonly config: DeviceConfig;
  /** One attempt to open the backend; asked for again and again until it is open. */
  readonly openBackend: () => Promise<OpenBackend>;
  readonly kernel: Kernel;
  readonly log: Log;
  readonly clock?: Clock | undefined;
  /** What an earlier supervisor left of it in the kernel. */
  readonly found?: FoundDevice | undefined;
  /** What the backend of the found device announced when it was opened then; null: it is not known. */
  readonly announced?: Announced | null | undefined;
  /** null: crash reports are in the log and in `status` alone. */
  readonly crashFiles?: CrashFiles | null;
  /** For devices that recover at the same time. */
  readonly turns: Turns;
  /** Called after every change of state; must not throw. */
  readonly onChange?: ((state: DeviceState) => void) | undefined;
}

const events: readonly DeviceEvent[] = ['exited', 'stop', 'recover', 'handOver'];

/**
 * Runs one device through its states. What happens to it is level-triggered: an exit, a stop or a recover stays
 * pending until a state answers it. Only the one loop in `#run` changes the state, so nothing can interleave.
 */
export class Device {
  #config: DeviceConfig;
  #spec: DeviceSpec;
  readonly #backend: DeviceBackend;
  readonly #openBackend: () => Promise<OpenBackend>;
  readonly #found: FoundDevice | null;
  readonly #kernel: Kernel;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #turns: Turns;
  readonly #selfRecovery: SelfRecovery;
  #turn: Turn | null = null;
  readonly #onChange: (state: DeviceState) => void;
  readonly #device: KernelDevice;
  #attempts: Attempts;
  readonly #history: DeviceHistory;
  readonly #crashes: DeviceCrashes;
  readonly #requests = new Waiters();
  readonly faults: DeviceFaults;

  #state: DeviceState;
  #afterRemoval: AfterRemoval = 'gone';
  #running = false;
  #error: SupervisorError | null = null;
  #reason: string | null = null;
  #recoverWanted = false;
  /** What is served again should the hand-over under way fail. */
  #previous: HandOver | null = null;
  /** Ends what can be ended: of the step under way a back-off or startDevice, at rest the wait for what passes by itself. */
  #interrupt = new Interrupt();

  constructor(options: DeviceOptions) {
    const { config, openBackend, kernel, turns, log, found = null, clock = monotonicClock, ...hooks } = options;
    this.#config = config;
    this.#found = found;
    this.#spec = unopenedSpec(config, { found, announced: options.announced ?? null, nursery: kernel.nursery(null) });
    this.#state = found === null ? 'adding' : 'adopting';
    this.#clock = clock;
    this.#openBackend = openBackend;
    this.#backend = new DeviceBackend(config.name, () => this.#open());
    this.#log = log;
    this.#kernel = kernel;
    this.#turns = turns;
    this.#onChange = hooks.onChange ?? (() => undefined);
    const onExit = (status: ExitStatus): void => this.#onExit(status);
    const onReport = (report: QueueReport): void => this.#onReport(report);
    const onDeath = (death: Death): void => {
      // A device that is tried again and again reports its first attempt only.
      if (!this.#selfRecovery.retries) this.#crashes.died(death);
      // It took the time-out, so it paces itself; and a store that does not answer must not use up the restarts.
      if (death.remains.hung !== null) this.#attempts.askedFor();
    };
    const rules = (): RequestRules => ({ marked: this.#crashes.marked, faults: this.faults.slots() });
    const onAdopted = ({ marked, faults }: Pick<Adopted, 'marked' | 'faults'>): void => {
      this.#crashes.restore(marked);
      this.faults.restore(faults);
    };
    this.faults = new DeviceFaults({
      rules: config.faults,
      device: () => this.#spec,
      counted: () => this.#device.faults(),
      write: (slot, rule) => this.#device.setFault(slot, rule),
    });
    this.#crashes = new DeviceCrashes({
      device: config.name,
      backend: this.#spec.backend.name,
      poisonAfter: config.recovery.poisonAfter,
      log,
      files: options.crashFiles ?? null,
    });
    this.#device = new KernelDevice({
      spec: this.#spec,
      found,
      kernel,
      clock,
      log,
      onExit,
      onDeath,
      rules,
      onAdopted,
      onReport,
    });
    this.#selfRecovery = new SelfRecovery({
      device: config.name,
      backend: this.#backend,
      clock,
      log,
      state: () => this.#state,
      auto: () => this.#config.recovery.auto,
      reason: () => this.#reason,
      setReason: (reason) => {
        this.#reason = reason;
      },
      allExited: () => this.#device.allExited,
      recover: () => this.#attempt(),
    });
    this.#attempts = new Attempts(config.recovery, clock);
    this.#history = new DeviceHistory(() => clock.now());
  }

  get state(): DeviceState {
    return this.#state;
  }

  /** null: it is not open. */
  get backend(): OpenBackend | null {
    return this.#backend.current;
  }

  /** Resolves when no attempt to open the backend is under way. */
  get opened(): Promise<unknown> {
    return this.#backend.settled;
  }

  /** Opens the backend unless it is open. Rejects with why it cannot be, with `CONFIG` when the configuration does not fit it. */
  open(): Promise<OpenBackend> {
    return this.#backend.open();
  }

  /** As `open`, but rejects when that takes too long; then it goes on. */
  openSoon(): Promise<OpenBackend> {
    return this.#backend.openSoon();
  }

  /** N of /dev/ublkbN; null while the kernel has no such device. */
  get id(): number | null {
    return this.#device.id;
  }

  /** Call once. Resolves when the device is live; rejects when it failed, or was stopped before. */
  start(): Promise<void> {
    if (this.#state === 'gone') return Promise.reject(this.#stopped());
    this.#attempts.askedFor();
    return this.#untilLive();
  }

  /**
   * Resolves when the device is gone. Without `force` it is refused with `IN_USE` or `EBUSY` while a process has the
   * device open or mounted. A stop that waits behind a refused one is tried next.
   */
  stop({ force }: { readonly force: boolean }): Promise<void> {
    if (this.#state === 'gone') return Promise.resolve();
    const gone = this.#requests.untilGone(force);
    this.#interrupt.fire();
    void this.#run();
    return gone;
  }

  /**
   * Resolves when the device is live (again), with its restarts forgotten; rejects with why it is not. `clearQuarantine`:
   * what was refused is given to the backend again, from now on.
   */
  recover({ clearQuarantine = false }: { readonly clearQuarantine?: boolean } = {}): Promise<void> {
    if (this.#state === 'gone' || this.#requests.stopPending) return Promise.reject(this.#stopped());
    if (clearQuarantine) {
      this.#crashes.clearQuarantine();
      this.#device.unmark();
    }
    this.#attempts.forgetRestarts();
    if (this.#state === 'live') return this.openSoon().then(() => undefined);
    this.#attempts.askedFor();
    this.#recoverWanted = true;
    // Of the steps that can be ended only a back-off is in the way, not a startDevice.
    if (this.#state !== 'starting') this.#interrupt.fire();
    return this.#untilLive();
  }

  /** What `next` comes to. Throws when this device cannot serve it. */
  specOf(next: Served): DeviceSpec {
    const { choices, blockSize } = this.#spec;
    const config = { ...next.config, blockSize: next.config.blockSize ?? blockSize };
    const spec = deviceSpec({ ...next, config }, this.#kernel);
    assertSameDevice(this.#spec, spec);
    return { ...spec, choices };
  }

  /**
   * Lets the generation that serves finish what it has, and replaces it by one that serves `next`; users of the device see
   * a pause. Rejects with why that did not work; then what was served before is served again wherever that is possible.
   * `force`: shrink even while the device is in use.
   */
  async handOver(next: Served, { force }: { readonly force: boolean }): Promise<void> {
    const spec = this.specOf(next);
    if (this.#state === 'gone' || this.#state === 'failed') throw this.#whyNotLive();
    const done = this.#requests.untilHandedOver({ ...next, spec, force });
    void this.#run();
    await done;
  }

  /** N of /dev/ublkbN while there is one. */
  get blockDevice(): number | null {
    return this.#device.blockDevice;
  }

  /** The hits of fault rules after number `after`, as far as they are still known. */
  faultLog(after: number): readonly FaultHitStatus[] {
    return this.faults.hits(this.#device.faultLog(after));
  }

  /** Bytes of what is served. */
  get size(): number {
    return this.#spec.size;
  }

  get blockSize(): number {
    return this.#spec.blockSize;
  }

  status(): DeviceStatus {
    const { id, started, generationNumber, stalled } = this.#device;
    const { recoveries, lastExit, lastBackendError, lastPauseMs } = this.#history;
    return {
      name: this.#spec.name,
      id,
      path: id !== null && started ? `/dev/ublkb${id}` : null,
      state: this.#state,
      reason: this.#reason ?? stalled ?? this.#crashes.reason,
      backend: this.#spec.backend.name,
      size: this.#spec.size,
      blockSize: this.#spec.blockSize,
      dataPath: this.#spec.dataPath,
      choices: this.#spec.choices,
      generation: generationNumber,
      recoveries,
      lastExit,
      lastCrash: this.#crashes.last,
      quarantine: this.#crashes.quarantined,
      lastBackendError,
      faults: this.faults.allowed ? this.faults.status() : null,
      lastPauseMs,
      queues: this.#device.queueStatus(),
    };
  }

  async #open(): Promise<OpenBackend> {
    const { name } = this.#config;
    const backend = await this.#openBackend().catch((error: unknown) => {
      throw failureOf(error, `opening the backend of device ${name}`, name);
    });
    try {
      if (this.#state === 'gone') throw this.#stopped();
      const found = this.#found;
      if (found !== null) assertSameSize(name, found, backend.size);
      const served = { config: this.#config, backend, nursery: null };
      const spec = found === null ? deviceSpec(served, this.#kernel) : specOfFound(served, this.#kernel, found);
      // Rules that do not fit the device are refused as a configuration that does not.
      if (found === null) this.faults.assertFit(spec);
      this.#serve({ config: this.#config, backend, spec });
      return backend;
    } catch (error) {
      await backend.close();
      if (backend.created) await backend.remove();
      throw error;
    }
  }

  #untilLive(): Promise<void> {
    const live = this.#requests.untilLive();
    void this.#run();
    return live;
  }

  /** The interpreter. It ends in the same turn in which it saw that the device rests and nothing is pending. */
  async #run(): Promise<void> {
    if (this.#running) return;
    this.#running = true;
    for (;;) {
      const rule = machine[this.#state];
      const target = rule.done === null ? this.#answer(rule) : await this.#perform(rule.steps, rule, rule.done);
      if (target === undefined) break;
      this.#enter(target);
    }
    this.#running = false;
  }

  /** Where the first pending event that this state answers leads. */
  #answer({ on }: Rule): Target | undefined {
    const { exited } = this.#device;
    const pending = {
      exited,
      stop: this.#requests.stopPending,
      recover: this.#recoverWanted,
      handOver: this.#requests.handOver !== null,
    };
    for (const event of events) {
      const answer = on[event];
      if (pending[event] && answer !== 'later') return answer;
    }
    return undefined;
  }

  async #perform(steps: readonly Step[], rule: Rule, done: Target | 'then'): Promise<Target> {
    for (const step of steps) {
      const answer = this.#answer(rule);
      if (answer !== undefined) return answer;
      try {
        await this.#step(step);
      } catch (error) {
        const answer = this.#answer(rule);
        // That was what interrupted it.
        if (step === 'openBackend' && answer !== undefined) return answer;
        return this.#fail(step, error);
      }
    }
    return this.#answer(rule) ?? (done === 'then' ? this.#afterRemoval : done);
  }

  async #step(step: Step): Promise<void> {
    const interrupt = this.#renewInterrupt();
    if (this.#requests.stopPending) interrupt.fire();
    if (step === 'backOff') return this.#backOff(interrupt.signal);
    if (step === 'openBackend') {
      if (this.#backend.current === null) await this.#backend.openSoon(interrupt.signal);
      return;
    }
    if (step === 'checkBackend') {
      await this.#backend.check();
      this.#selfRecovery.storeIsThere();
      return;
    }
    if (step === 'takeTurn') return this.#takeTurn(interrupt.signal);
    if (step === 'exchange') {
      this.#exchange();
      return;
    }
    if (step === 'drainGeneration') this.#history.paused();
    // A removal that no caller asked for is the last resort, so the device's users cannot prevent it.
    const handOver = this.#state === 'handingOver' ? this.#requests.handOver : null;
    const force = handOver?.force ?? (this.#stopUnderWay ? this.#requests.force : true);
    return this.#device.run(step, { force, cancelStart: interrupt });
  }

  /** Whatever still waits under the last one was for what is over. */
  #renewInterrupt(): Interrupt {
    this.#interrupt.fire();
    this.#interrupt = new Interrupt();
    return this.#interrupt;
  }

  #exchange(): void {
    const next = this.#requests.handOver;
    if (next === null) return;
    const { nursery } = this.#spec;
    const backend = this.#backend.current ?? next.backend;
    this.#previous = { config: this.#config, backend, nursery, spec: this.#spec, force: true };
    this.#serve(next);
  }

  #serve({ config, backend, spec }: Pick<HandOver, 'config' | 'backend' | 'spec'>): void {
    if (config.recovery !== this.#config.recovery) this.#attempts = new Attempts(config.recovery, this.#clock);
    this.#config = config;
    this.#backend.current = backend;
    this.#spec = spec;
    this.#device.spec = spec;
  }

  #takeBack(): void {
    if (this.#previous !== null) this.#serve(this.#previous);
    this.#previous = null;
  }

  /** Leaves `handingOver`. Only a generation that serves what was asked for is a success. */
  #endHandOver(target: Target): void {
    if (target !== 'live') {
      this.#takeBack();
      return;
    }
    this.#requests.handedOver();
    this.#previous = null;
  }

  /** A device that is to be stopped after this attempt does not wait for its turn. */
  async #takeTurn(signal: AbortSignal): Promise<void> {
    this.#turn = this.#turns.take();
    await Promise.race([this.#turn.begun, aborted(signal)]);
  }

  async #backOff(signal: AbortSignal): Promise<void> {
    const { name } = this.#config;
    const exhausted = await this.#attempts.backOff(this.#history.servedMs, this.#requests.stopPending, signal);
    if (exhausted === null) return;
    const last = this.#reason ?? `restarting device ${name} failed`;
    const advice = `ublk-supervisor recover ${name} tries again`;
    throw this.#newError(`${last}; ${exhausted.reason}, ${advice}`, exhausted.code, this.#error);
  }

  #fail(step: Step, error: unknown): Target {
    const { name } = this.#config;
    const known = failureOf(error, `${step} of device ${name}`, name);
    if (this.#state === 'stopping' && this.#afterRemoval !== 'gone' && this.#error !== null) {
      // A removal that fails must not hide why the device is removed.
      this.#reason = `${this.#error.message}; ${known.message}`;
    } else {
      this.#error = known;
      this.#reason = known.message;
    }
    if (this.#interrupted(known.code)) {
      this.#attempts.rested();
      return 'recovering';
    }
    if (this.#state === 'handingOver') {
      this.#requests.handOverFailed(known);
      this.#takeBack();
      this.#attempts.askedFor();
    } else this.#attempts.failed();
    const target = targetOfFailure(this.#state, step, known.code);
    this.#selfRecovery.failed(step, target, known.code);
    return target;
  }

  /**
   * What failed did so because the device's own processes died or hung, and nothing was done yet that recovering them does
   * not mend: a stop or a hand-over stays asked for, and is carried out afterwards.
   */
  #interrupted(code: ErrorCode): boolean {
    if (!this.#device.exited) return false;
    if (this.#state === 'handingOver') return code !== 'IN_USE' && code !== 'EBUSY' && this.#requests.handOverAgain();
    return this.#stopUnderWay && code === 'WRITE_BACK' && this.#requests.stopAgain();
  }

  #enter(target: Target): void {
    const from = this.#state;
    this.#turn?.end();
    this.#turn = null;
    if (from === 'handingOver') this.#endHandOver(target);
    if (target === 'refuse' && this.#stopUnderWay) this.#requests.stopRefused(this.#whyNotLive());
    if (typeof target === 'object') this.#afterRemoval = target.then;
    this.#state = target === 'refuse' ? this.#device.rest : typeof target === 'object' ? target.state : target;
    this.#recoverWanted = false;
    if (this.#state === 'live' && target !== 'refuse') this.#becomeLive(from);
    // Why an earlier stop was refused says nothing about this one.
    if (this.#state === 'draining' && from === 'live') this.#reason = null;
    if (machine[this.#state].done === null) this.#rest();
    this.#report(from);
  }

  #becomeLive(from: DeviceState): void {
    this.#reason = null;
    this.#selfRecovery.becameLive();
    if (from === 'recovering') this.#crashes.recovered(this.#history.recovered());
    else if (from === 'handingOver') this.#history.handedOver();
    else this.#history.started();
  }

  #rest(): void {
    this.#attempts.rested();
    this.#requests.rests();
    if (machine[this.#state].blockDevice === 'absent') this.#requests.handOversRefused(this.#whyNotLive());
    if (this.#state === 'live') this.#requests.live();
    else this.#requests.notLive(this.#whyNotLive());
    // Also when a stop, which interrupted it, was refused.
    const interrupt = this.#renewInterrupt();
    this.#selfRecovery.rests(interrupt.signal);
    if (this.#state !== 'gone') return;
    this.#reason = null;
    this.faults.end();
    this.#requests.gone();
  }

  #attempt(): void {
    this.#attempts.askedFor();
    this.#recoverWanted = true;
    void this.#run();
  }

  #report(from: DeviceState): void {
    const { name: device } = this.#config;
    this.#onChange(this.#state);
    if (this.#selfRecovery.repeatsItself) return;
    const level = machine[this.#state].trouble ? 'error' : this.#reason === null ? 'info' : 'warn';
    const why = this.#reason === null ? '' : `: ${this.#reason}`;
    this.#log[level]({ device, state: this.#state, from }, `device ${device} is ${this.#state}${why}`);
  }

  #onExit(status: ExitStatus): void {
    const { name: device } = this.#config;
    const { queue, pid, code, signal, stack } = status;
    this.#error = this.#newError(`serving device ${device} failed: ${describeExit(status)}`, 'EXITED');
    this.#reason = this.#error.message;
    this.#history.exited(status, this.#device.exited);
    const fields = { device, queue, pid, code, signal, ...(stack === null ? {} : { stack }) };
    if (!this.#selfRecovery.retries) this.#log.warn(fields, this.#error.message);
    void this.#run();
  }

  #onReport(said: QueueReport): void {
    const { name: device } = this.#config;
    if (said.queue === null) {
      this.#log[said.report.level]({ device }, said.report.message);
      return;
    }
    const { queue, report } = said;
    if (report.type === 'log') {
      this.#log[report.level]({ device, queue }, report.message);
      return;
    }
    const { message, stack, count } = report;
    const request = requestStatus(report.request);
    this.#history.failedRequest({ queue, request, message, stack, at: new Date().toISOString() });
    const more = count > 1 ? ` (${count} of them)` : '';
    const what = `a ${describeRequest(request)} of device ${device}`;
    this.#log.error({ device, queue, stack }, `${what} failed with EIO: ${message}${more}`);
  }

  #whyNotLive(): SupervisorError {
    return (this.#state === 'gone' ? null : this.#error) ?? this.#stopped();
  }

  #stopped(): SupervisorError {
    return this.#newError(`device ${this.#config.name} is not served: it was stopped`, 'STOPPED');
  }

  #newError(message: string, code: ErrorCode, cause?: unknown): SupervisorError {
    return new SupervisorError(message, { code, device: this.#config.name, cause: cause ?? undefined });
  }

  get #stopUnderWay(): boolean {
    return this.#state === 'draining' || (this.#state === 'stopping' && this.#afterRemoval === 'gone');
  }
}

/** Throws unless the backend has the size that the device's users know. */
function assertSameSize(device: string, { id, size }: FoundDevice, now: number): void {
  if (size === null || size === now) return;
  const message =
    `adopting device ${device} failed: /dev/ublkb${id} has ${size} bytes and its backend ` +
    `${now}; it goes on being served, but is managed only when that is its size again`;
  throw new SupervisorError(message, { code: 'CONFIG', device });
}
