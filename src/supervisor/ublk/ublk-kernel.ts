import { closeSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import type { DataPath } from '../../../backends/interface.js';
import { SupervisorError, messageOf } from '../../errors.js';
import { SAME_USER } from '../../native/addon/accounts.js';
import {
  controlAction,
  dataPathNumber,
  type ControlCommand,
  type ControlRequest,
} from '../../native/addon/zygote-channel.js';
import { createSharedPages, reopenSharedPages, type SharedPages } from '../../native/addon/shared-pages.js';
import { translated } from '../../native/addon/load.js';
import type { FaultChange, FaultHit, FaultInSlot } from '../../native/addon/fault-area.js';
import { openPidfd } from '../../native/addon/process-watch.js';
import { ublkDeviceInfo } from '../../native/addon/system.js';
import type { BackendReport } from '../../channel/message-schema.js';
import { BackendChannel } from './backend-channel.js';
import { BackendOutput } from './backend-output.js';
import { Claims } from './claims.js';
import { ANY_ID, holdClaim, runCommand } from './commands.js';
import { DeviceRecords } from './device-records.js';
import { noticeDeathsSoon } from './io-timeout.js';
import { SECTOR, flagsOf, maxIoBytes, parametersOf } from './parameters.js';
import { queueStatus } from './queue-status.js';
import { ensureNode, removeStaleNodes } from '../nodes/device-nodes.js';
import { stateOf } from './ublk-devices.js';
import { parentOf } from '../host/processes.js';
import { FailureReports } from './failure-reports.js';
import { ProcessGeneration } from './generation.js';
import { Rounds } from '../../timing/rounds.js';
import type {
  Adopted,
  Claim,
  ClaimedFor,
  DeviceSpec,
  FoundDevice,
  Generation,
  GrantedDevice,
  Kernel,
  KernelDeviceState,
  KernelQuirks,
  FaultSlot,
  QueueReport,
  RequestRules,
  StopOptions,
} from './kernel.js';
import type { QueueStatus } from '../../api/status.js';
import { dataPathFeature, featureFlag, hasFeature, ublkFeatureTable } from '../host/ublk-features.js';
import type { ControlAnswer, HeldByZygote, Zygote } from '../zygote/zygote.js';
import type { ZygoteKeeper } from '../zygote/zygote-keeper.js';

/** udev may hold a new char device for a moment, and its node may not be there yet. */
const SPAWN_RETRY_MS = 5;
const SPAWN_DEADLINE_MS = 2_000;
/** Messages carry 253 descriptors, of which each channel, the output and the shared memory take two and the shared page one. */
const MOST_KEPT_CHANNELS = 124;
/** How long TRY_STOP_DEV is tried while the device is open: the opener is most often udev, which closes it again. */
const TRY_STOP_MS = 1_000;
/** How long a deleted device's id may stay taken before we say that the block device is still open. */
const REMOVAL_POLL_MS = 5;
const REMOVAL_DEADLINE_MS = 2_000;
/** The real kernel: control commands through the device's zygote, processes by pidfd, counters from the shared pages. */
export class UblkKernel implements Kernel {
  readonly quirks: KernelQuirks;
  readonly resizes: boolean;
  readonly #features: bigint;
  readonly cookieOf: (name: string) => bigint;
  readonly #zygotes: Pick<ZygoteKeeper, 'fork' | 'nursery' | 'running'>;
  readonly #devices: DeviceRecords;
  readonly #rounds = new Rounds();
  readonly #claims = new Claims(async (id) => holdClaim(await this.#devices.zygoteOf(id), id));

  /** `cookieOf` marks our devices in the kernel. */
  constructor(options: {
    features: bigint;
    cookieOf: (name: string) => bigint;
    zygotes: Pick<ZygoteKeeper, 'fork' | 'nursery' | 'running'>;
  }) {
    this.#features = options.features;
    this.cookieOf = options.cookieOf;
    this.#zygotes = options.zygotes;
    this.#devices = new DeviceRecords(options.zygotes);
    this.quirks = {
      midFetchDeathIsFatal: !this.#has('SAFE_STOP_DEV'),
      recoveryBeginsOnce: !this.#has('QUIESCE'),
      deathNoticedByTimeout: !this.#has('QUIESCE'),
      lastFetchForgetsCancelled: this.#has('QUIESCE') && !this.#has('SAFE_STOP_DEV'),
    };
    this.resizes = this.#has('UPDATE_SIZE');
  }

  nursery(wanted: number | null): number {
    return this.#zygotes.nursery(wanted);
  }

  offers(dataPath: DataPath): boolean {
    const feature = dataPathFeature[dataPath];
    return feature === null || this.#has(feature);
  }

  async addDevice(spec: DeviceSpec): Promise<GrantedDevice> {
    const wanted = flagsOf(spec, this.#features);
    const zygote = await this.#zygotes.fork(spec.nursery);
    const device = {
      id: spec.id ?? ANY_ID,
      queues: spec.queues,
      depth: spec.depth,
      maxIoBytes: maxIoBytes(spec),
      flags: wanted,
      cookie: this.cookieOf(spec.name),
    };
    const answer = await runCommand(zygote, 'ADD_DEV', device.id, { device }).catch(async (error: unknown) => {
      await zygote.retire();
      throw error;
    });
    const { id, queues, depth } = answer;
    const granted = { id, queues, depth };
    this.#devices.add(granted, spec, zygote);
    const missing = wanted & ~answer.flags;
    if (missing === 0n) return granted;
    await this.deleteDevice(id);
    await this.release(granted);
    const names = ublkFeatureTable.filter((feature) => hasFeature(missing, feature));
    const lacking = names.map(({ name, since }) => `${name} (Linux ${since})`).join(', ');
    throw new SupervisorError(
      `ADD_DEV for device ${spec.name} failed: the kernel does not grant ${lacking}; use a newer kernel`,
      { code: 'EOPNOTSUPP', device: spec.name },
    );
  }

  async setParameters(id: number, spec: DeviceSpec): Promise<void> {
    await this.#control('SET_PARAMS', id, { parameters: parametersOf(spec) });
  }

  async spawn(
    granted: GrantedDevice,
    spec: DeviceSpec,
    number: number,
    onReport: (report: QueueReport) => void,
    { marked, faults }: RequestRules,
    firstStart: boolean,
  ): Promise<Generation> {
    const record = this.#devices.get(granted.id);
    const pages = (record.pages ??= newPages(granted, faults));
    const failures = (record.failures ??= newFailureReports(pages, granted.queues, onReport));
    pages.beginGeneration(firstStart && this.quirks.lastFetchForgetsCancelled);
    pages.mark(marked);
    const { module } = spec.backend;
    const channels: BackendChannel[] = [];
    const output = module === null ? null : newOutput(onReport);
    try {
      for (let queue = 0; module !== null && queue < granted.queues; queue++) {
        channels.push(new BackendChannel((report) => onReport({ queue, report })));
      }
      const ends = output === null ? [] : [...channels, output];
      const files = [...ends.flatMap(({ remote }) => remote ?? []), ...spec.backend.files];
      const keptEnds = channels.length > MOST_KEPT_CHANNELS ? [] : ends.map(({ local }) => local);
      const kept = output === null ? [] : [...spec.backend.files, ...keptEnds];
      const { pids, pidfds } = await this.#fork(granted, spec, number, pages.fd, files, kept);
      record.generation = new ProcessGeneration({
        number,
        pages,
        processes: pids.map((pid, queue) => ({ pid, pidfd: pidfds[queue] ?? null })),
        channels,
        output,
        rounds: this.#rounds,
        requestTimeoutMs: spec.requestTimeoutMs,
        failures,
        onReport,
      });
    } finally {
      for (const channel of channels) channel.handedOver();
      output?.handedOver();
    }
    if (module !== null) {
      const { path, options, directory, lower } = module;
      const load = { device: spec.name, module: path, options, directory, lower };
      for (const channel of channels) channel.load(load);
    }
    return record.generation;
  }

  stateOf(id: number): KernelDeviceState {
    return stateOf(ublkDeviceInfo(id));
  }

  adopt(found: FoundDevice, spec: DeviceSpec, onReport: (report: QueueReport) => void): Adopted | null {
    const { id, held, state } = found;
    // Nothing that a device cannot do without.
    if (state === 'LIVE' && this.quirks.deathNoticedByTimeout) void noticeDeathsSoon(id).catch(() => undefined);
    const zygote = held === null ? null : (this.#zygotes.running(held.zygote) ?? null);
    const record = this.#devices.add(found, spec, zygote);
    if (held === null) return null;
    const pages = leftPages(held);
    record.pages = pages;
    const failures = (record.failures = newFailureReports(pages, found.queues, onReport));
    // The first is the backend's own.
    const kept = spec.backend.module === null ? [] : held.files.slice(1);
    const channels = kept.slice(0, -1).map((fd, queue) => {
      const report = (report: BackendReport): void => onReport({ queue, report });
      return new BackendChannel(report, fd);
    });
    const outputFd = kept.at(-1);
    const generation = new ProcessGeneration({
      number: held.generation,
      pages,
      processes: held.processes.map(({ pid, running }) => ({
        pid,
        pidfd: running && zygote !== null ? childPidfd(pid, zygote.pid) : null,
      })),
      channels,
      output: outputFd === undefined ? null : newOutput(onReport, outputFd),
      rounds: this.#rounds,
      requestTimeoutMs: spec.requestTimeoutMs,
      failures,
      onReport,
    });
    record.generation = generation;
    for (const process of held.processes) if (!process.running) generation.onNotice(process);
    return { generation, marked: pages.marked(), faults: pages.faults() };
  }

  /** Asks again while udev holds the char device or its node is not there yet. */
  async #fork(
    granted: GrantedDevice,
    spec: DeviceSpec,
    generation: number,
    sharedPage: number,
    files: readonly number[],
    kept: readonly number[],
  ): Promise<{ pids: readonly number[]; pidfds: readonly number[] }> {
    const deadline = performance.now() + SPAWN_DEADLINE_MS;
    const request = {
      deviceId: granted.id,
      generation,
      queues: granted.queues,
      depth: granted.depth,
      maxIoBytes: maxIoBytes(spec),
      dataPath: dataPathNumber[spec.dataPath],
      javascript: spec.backend.module !== null,
      uid: spec.user?.uid ?? SAME_USER,
      gid: spec.user?.gid ?? SAME_USER,
      coreDump: spec.coreDump,
      size: spec.size,
      backend: spec.backend.module === null ? spec.backend.name : '',
    };
    const before = this.#devices.get(granted.id).zygote;
    ensureNode(`ublkc${granted.id}`);
    const zygote = await this.#devices.zygoteOf(granted.id, this.nursery(spec.nursery));
    try {
      for (;;) {
        try {
          return await zygote.spawn(request, sharedPage, files, kept);
        } catch (error) {
          const busy = error instanceof SupervisorError && (error.code === 'EBUSY' || error.code === 'ENOENT');
          if (!busy || performance.now() > deadline) throw error;
          await setTimeout(SPAWN_RETRY_MS);
        }
      }
    } finally {
      // Only now does another zygote hold for a successor of ours what this one held.
      if (before !== zygote) void before?.retire();
    }
  }

  async startDevice({ id }: GrantedDevice, signal: AbortSignal): Promise<void> {
    await this.#serve('START_DEV', id, signal);
    ensureNode(`ublkb${id}`);
    if (this.quirks.deathNoticedByTimeout) await noticeDeathsSoon(id);
  }

  async beginRecovery(id: number): Promise<void> {
    await this.#control('START_USER_RECOVERY', id, { action: controlAction.retryWhileBusy });
  }

  async endRecovery({ id }: GrantedDevice, signal: AbortSignal): Promise<void> {
    await this.#serve('END_USER_RECOVERY', id, signal);
    if (this.quirks.deathNoticedByTimeout) await noticeDeathsSoon(id);
  }

  async updateSize(id: number, bytes: number): Promise<void> {
    await this.#control('UPDATE_SIZE', id, { data: bytes / SECTOR });
  }

  async #serve(command: ControlCommand, id: number, signal: AbortSignal): Promise<void> {
    const { fetchDeadlineMs, pages, generation } = this.#devices.get(id);
    const zygote = await this.#devices.zygoteOf(id);
    const fetched = pages && { sharedPage: pages.fd, pids: generation?.pids ?? [] };
    const details = { action: controlAction.whenFetched, data: zygote.pid, ...fetched };
    await runCommand(zygote, command, id, details, signal, fetchDeadlineMs);
  }

  claim(ids: readonly number[], purpose: ClaimedFor): Promise<Claim> {
    // For users that come later the kernel refuses the stop, or the stop looks again.
    return this.#claims.take(ids, purpose, { once: purpose === 'stopping' });
  }

  async stopDevice(id: number, { force, served }: StopOptions): Promise<void> {
    const claim = force ? null : await this.claim([id], 'stopping');
    try {
      if (served !== null) await this.#writeBack(id, force, served);
      if (force) await this.#control('STOP_DEV', id, {});
      else if (this.#has('SAFE_STOP_DEV')) await this.#tryStop(id);
      else {
        // Throws if a program has opened the device during the write-back.
        await (await this.#claims.take([id], 'stopping')).release();
        await this.#control('STOP_DEV', id, {});
        // Its id would stay taken until the last claim goes, that of a stop of all devices for example.
        await this.#claims.giveUp(id);
      }
    } catch (error) {
      // Never started or already gone: nothing to stop.
      if (!(error instanceof SupervisorError && error.code === 'ENODEV')) throw error;
    } finally {
      await claim?.release();
    }
  }

  /** The kernel itself refuses while anybody has the device open, us too. */
  async #tryStop(id: number): Promise<void> {
    await this.#claims.giveUp(id);
    try {
      await this.#control('TRY_STOP_DEV', id, { action: controlAction.retryWhileBusy, deadlineMs: TRY_STOP_MS });
    } catch (error) {
      if (!(error instanceof SupervisorError && error.code === 'EBUSY')) throw error;
      throw await this.#claims.inUse([id], 'stopping');
    }
  }

  /**
   * Dirty pages are on stable storage when this resolves. Its time-out is not STOP_DEV's: nothing was stopped yet, and
   * a stop without `force` must not go on.
   */
  async #writeBack(id: number, force: boolean, served: AbortSignal): Promise<void> {
    try {
      await this.#control('STOP_DEV', id, { action: controlAction.writeBack }, served);
    } catch (error) {
      // Pages that the device itself refuses are lost either way.
      if (force && error instanceof SupervisorError && error.errno !== undefined) return;
      throw new SupervisorError(`writing back /dev/ublkb${id} failed: ${messageOf(error)}`, {
        code: 'WRITE_BACK',
        cause: error,
      });
    }
  }

  /** Deletes a device that an earlier supervisor left and that has no zygote. */
  async deleteLeftDevice(id: number): Promise<boolean> {
    const zygote = await this.#zygotes.fork(this.nursery(null));
    try {
      return await this.#deleteDevice(id, zygote);
    } finally {
      await zygote.retire();
    }
  }

  async deleteDevice(id: number): Promise<boolean> {
    return this.#deleteDevice(id, await this.#devices.zygoteOf(id));
  }

  async #deleteDevice(id: number, zygote: Zygote): Promise<boolean> {
    const record = this.#devices.find(id);
    try {
      await runCommand(zygote, 'DEL_DEV_ASYNC', id, {});
    } catch (error) {
      if (error instanceof SupervisorError && error.code === 'ENODEV') return true;
      throw error;
    }
    // The kernel does not announce the removal of the id, and may have given it to another device of ours before we look.
    const deadline = performance.now() + REMOVAL_DEADLINE_MS;
    while (this.#devices.find(id) === record && ublkDeviceInfo(id) !== null) {
      if (performance.now() > deadline) return false;
      await setTimeout(REMOVAL_POLL_MS);
    }
    removeStaleNodes();
    return true;
  }

  queueStatus({ id, queues, depth }: GrantedDevice, generation: Generation | null): QueueStatus[] {
    const pages = this.#devices.find(id)?.pages;
    if (!pages) return [];
    return queueStatus(pages, { queues, depth }, generation);
  }

  unmark(id: number): void {
    this.#devices.find(id)?.pages?.mark([]);
  }

  setFault(id: number, slot: number, rule: FaultChange | null): void {
    const record = this.#devices.find(id);
    if (!record?.pages) return;
    const { pages, granted } = record;
    translated(() => pages.setFault(slot, rule));
    for (let queue = 0; queue < granted.queues; queue++) pages.ask(queue);
  }

  faults(id: number): readonly FaultInSlot[] {
    return this.#devices.find(id)?.pages?.faults() ?? [];
  }

  faultLog(id: number, after: number): readonly FaultHit[] {
    return this.#devices.find(id)?.pages?.faultLog(after) ?? [];
  }

  async release(granted: GrantedDevice): Promise<void> {
    await this.#devices.release(granted);
  }

  #has(feature: Parameters<typeof featureFlag>[0]): boolean {
    return (this.#features & featureFlag(feature)) !== 0n;
  }

  async #control(
    command: ControlCommand,
    id: number,
    details: Partial<ControlRequest>,
    signal?: AbortSignal,
  ): Promise<ControlAnswer> {
    return runCommand(await this.#devices.zygoteOf(id), command, id, details, signal);
  }
}

function newPages({ queues, depth }: GrantedDevice, faults: readonly FaultSlot[] | null): SharedPages {
  const pages = createSharedPages(queues, depth, faults !== null);
  for (const { slot, rule } of faults ?? []) pages.setFault(slot, { ...rule, kept: false });
  return pages;
}

function newFailureReports(
  pages: SharedPages,
  queues: number,
  onReport: (report: QueueReport) => void,
): FailureReports {
  return new FailureReports(pages, queues, (queue, message) =>
    onReport({ queue, report: { type: 'log', level: 'warn', message } }),
  );
}

function newOutput(onReport: (report: QueueReport) => void, inherited?: number): BackendOutput {
  const say = (message: string): void => onReport({ queue: null, report: { type: 'log', level: 'warn', message } });
  return new BackendOutput(say, inherited);
}

/** One that cannot be read gives way to an empty one, as of a generation that did not fetch: its processes can be ended. */
function leftPages({ queues, depth, sharedPage }: HeldByZygote): SharedPages {
  try {
    return reopenSharedPages(queues, depth, sharedPage);
  } catch {
    return createSharedPages(queues, depth, false);
  }
}

/** A pidfd of the process if it is still a child of the zygote; null if it is gone, or its number is another's. */
function childPidfd(pid: number, zygote: number): number | null {
  const pidfd = openPidfd(pid);
  if (pidfd === null) return null;
  if (parentOf(pid) === zygote) return pidfd;
  closeSync(pidfd);
  return null;
}
