import { closeSync } from 'node:fs';
import { open, readFile, type FileHandle } from 'node:fs/promises';
import { setTimeout } from 'node:timers/promises';
import type { DataPath } from '../../backends/interface.js';
import { SupervisorError, messageOf } from '../errors.js';
import {
  SAME_USER,
  controlAction,
  controlCommand,
  createSharedPages,
  openPidfd,
  reopenSharedPages,
  dataPathNumber,
  errnoName,
  ublkDeviceInfo,
  type ControlCommand,
  type ControlRequest,
  type MarkedRequest,
  type SharedOperation,
  type SharedPages,
} from '../native/binding.js';
import type { BackendReport } from '../queue-proc/message-schema.js';
import { BackendChannel } from './backend-channel.js';
import { holdersOf } from './block-device-users.js';
import { stateOf } from './found-devices.js';
import { parentOf } from './processes.js';
import { ProcessGeneration } from './generation.js';
import type {
  Adopted,
  DeviceSpec,
  FoundDevice,
  Generation,
  GrantedDevice,
  HeldByZygote,
  Kernel,
  KernelDeviceState,
  KernelQuirks,
  QueueReport,
  StopOptions,
} from './kernel.js';
import type { OperationStatus, QueueStatus } from './status.js';
import { dataPathFeature, featureFlag, hasFeature, ublkFeatureTable } from './ublk-features.js';
import type { ControlAnswer, ExitNotice, Zygote } from './zygote.js';
import type { ZygoteKeeper } from './zygote-keeper.js';

/** Commands that only wait for locks or for FETCHes. */
const COMMAND_DEADLINE_MS = 10_000;
/** Queue processes with a JavaScript backend boot node, load the backend and open it before they fetch. */
const JAVASCRIPT_FETCH_DEADLINE_MS = 60_000;
/** Writing a large dirty page cache back takes its time. */
const WRITE_BACK_DEADLINE_MS = 120_000;
/** udev may hold a new char device for a moment, and its node may not be there yet. */
const SPAWN_RETRY_MS = 5;
const SPAWN_DEADLINE_MS = 2_000;
/** Messages carry 253 descriptors, of which each channel takes two and the shared page one. */
const MOST_KEPT_CHANNELS = 126;
/** How long a deleted device's id may stay taken before somebody must be holding the block device. */
const REMOVAL_POLL_MS = 5;
const REMOVAL_DEADLINE_MS = 2_000;
/** Up to 6.14 this is how long a dead server with every command in flight stays unnoticed; the default is 30 s. */
const OLD_KERNEL_IO_TIMEOUT_MS = 1_000;

const ANY_ID = 0xffffffff;
const SECTOR = 512;
const MAX_DISCARD_SECTORS = 2 ** 31 / SECTOR;

const Attribute = { readOnly: 1, rotational: 2, volatileCache: 4, fua: 8 } as const;

/** What is kept for a device between its generations. */
interface DeviceRecord {
  readonly pages: SharedPages;
  generation: ProcessGeneration | null;
  /** Which forked the generation. */
  zygote: Zygote | null;
  fetchDeadlineMs: number;
}

/** The real kernel: control commands through the zygote, processes by pidfd, counters from the shared pages. */
export class UblkKernel implements Kernel {
  readonly quirks: KernelQuirks;
  readonly resizes: boolean;
  readonly #features: bigint;
  readonly #cookieOf: (name: string) => bigint;
  readonly #zygotes: Pick<ZygoteKeeper, 'get' | 'running'>;
  readonly #devices = new Map<number, DeviceRecord>();

  /** `cookieOf` marks our devices in the kernel. */
  constructor(options: {
    features: bigint;
    cookieOf: (name: string) => bigint;
    zygotes: Pick<ZygoteKeeper, 'get' | 'running'>;
  }) {
    this.#features = options.features;
    this.#cookieOf = options.cookieOf;
    this.#zygotes = options.zygotes;
    this.quirks = {
      midFetchDeathIsFatal: !this.#has('SAFE_STOP_DEV'),
      recoveryBeginsOnce: !this.#has('QUIESCE'),
      deathNoticedByTimeout: !this.#has('QUIESCE'),
      lastFetchForgetsCancelled: this.#has('QUIESCE') && !this.#has('SAFE_STOP_DEV'),
    };
    this.resizes = this.#has('UPDATE_SIZE');
  }

  /** To be called with what the zygote reports of its children. */
  onExit(notice: ExitNotice): void {
    for (const { generation } of this.#devices.values()) generation?.onNotice(notice);
  }

  offers(dataPath: DataPath): boolean {
    const feature = dataPathFeature[dataPath];
    return feature === null || this.#has(feature);
  }

  async addDevice(spec: DeviceSpec): Promise<GrantedDevice> {
    const wanted = this.#deviceFlags(spec);
    const answer = await this.#control('ADD_DEV', spec.id ?? ANY_ID, {
      device: {
        id: spec.id ?? ANY_ID,
        queues: spec.queues,
        depth: spec.depth,
        maxIoBytes: maxIoBytes(spec),
        flags: wanted,
        cookie: this.#cookieOf(spec.name),
      },
    });
    const missing = wanted & ~answer.flags;
    if (missing !== 0n) {
      await this.deleteDevice(answer.id);
      const names = ublkFeatureTable.filter((feature) => hasFeature(missing, feature));
      const lacking = names.map(({ name, since }) => `${name} (Linux ${since})`).join(', ');
      throw new SupervisorError(
        `ADD_DEV for device ${spec.name} failed: the kernel does not grant ${lacking}; use a newer kernel`,
        { code: 'EOPNOTSUPP', device: spec.name },
      );
    }
    return { id: answer.id, queues: answer.queues, depth: answer.depth };
  }

  async setParameters(id: number, spec: DeviceSpec): Promise<void> {
    const { facts } = spec;
    const physicalBlock = Math.max(spec.blockSize, 4096);
    await this.#control('SET_PARAMS', id, {
      parameters: {
        attributes:
          (facts.readOnly ? Attribute.readOnly : 0) |
          (facts.rotational ? Attribute.rotational : 0) |
          (facts.volatileCache ? Attribute.volatileCache : 0) |
          (facts.fua ? Attribute.fua : 0),
        logicalBlockShift: Math.log2(spec.blockSize),
        physicalBlockShift: Math.log2(physicalBlock),
        maxSectors: maxIoBytes(spec) / SECTOR,
        deviceSectors: spec.size / SECTOR,
        discardGranularity: physicalBlock,
        maxDiscardSectors: facts.discard ? MAX_DISCARD_SECTORS : 0,
        maxWriteZeroesSectors: facts.writeZeroes ? MAX_DISCARD_SECTORS : 0,
      },
    });
  }

  async spawn(
    granted: GrantedDevice,
    spec: DeviceSpec,
    number: number,
    onReport: (report: QueueReport) => void,
    marked: readonly MarkedRequest[],
    firstStart: boolean,
  ): Promise<Generation> {
    const record =
      this.#devices.get(granted.id) ?? this.#newRecord(granted, spec, createSharedPages(granted.queues, granted.depth));
    record.pages.beginGeneration(firstStart && this.quirks.lastFetchForgetsCancelled);
    record.pages.mark(marked);
    const { module } = spec.backend;
    const channels: BackendChannel[] = [];
    try {
      for (let queue = 0; module !== null && queue < granted.queues; queue++) {
        channels.push(
          new BackendChannel((report) => {
            onReport({ queue, report });
          }),
        );
      }
      const files = module === null ? spec.backend.files : channels.flatMap(({ remote }) => remote ?? []);
      const kept = channels.length > MOST_KEPT_CHANNELS ? [] : channels.map(({ local }) => local);
      const { zygote, pids, pidfds } = await this.#fork(granted, spec, number, record.pages.fd, files, kept);
      record.generation = new ProcessGeneration({
        number,
        pages: record.pages,
        processes: pids.map((pid, queue) => ({ pid, pidfd: pidfds[queue] ?? null })),
        channels,
        requestTimeoutMs: spec.requestTimeoutMs,
        onReport,
      });
      const before = record.zygote;
      record.zygote = zygote;
      // Nobody waits for a zygote that is to end.
      if (before !== null && before !== zygote) before.forget(granted.id).catch(() => undefined);
    } finally {
      for (const channel of channels) channel.handedOver();
    }
    if (module !== null) {
      const { path, options, sharedMemory } = module;
      for (const channel of channels) channel.load({ device: spec.name, module: path, options, sharedMemory });
    }
    return record.generation;
  }

  stateOf(id: number): KernelDeviceState {
    return stateOf(ublkDeviceInfo(id));
  }

  adopt(found: FoundDevice, spec: DeviceSpec, onReport: (report: QueueReport) => void): Adopted | null {
    const { id, held, state } = found;
    // Nothing that a device cannot do without.
    if (state === 'LIVE') void this.#noticeDeathsSoon(id).catch(() => undefined);
    if (held === null) return null;
    const record = this.#newRecord(found, spec, leftPages(held));
    const zygote = this.#zygotes.running(held.zygote) ?? null;
    record.zygote = zygote;
    const channels =
      spec.backend.module === null
        ? []
        : held.files.map((fd, queue) => {
            const report = (report: BackendReport): void => {
              onReport({ queue, report });
            };
            return new BackendChannel(report, fd);
          });
    const generation = new ProcessGeneration({
      number: held.generation,
      pages: record.pages,
      processes: held.processes.map(({ pid, running }) => ({
        pid,
        pidfd: running && zygote !== null ? childPidfd(pid, zygote.pid) : null,
      })),
      channels,
      requestTimeoutMs: spec.requestTimeoutMs,
      onReport,
    });
    record.generation = generation;
    for (const process of held.processes) if (!process.running) generation.onNotice(process);
    return { generation, marked: record.pages.marked() };
  }

  #newRecord({ id }: GrantedDevice, spec: DeviceSpec, pages: SharedPages): DeviceRecord {
    const record: DeviceRecord = {
      pages,
      generation: null,
      zygote: null,
      fetchDeadlineMs: spec.backend.module === null ? COMMAND_DEADLINE_MS : JAVASCRIPT_FETCH_DEADLINE_MS,
    };
    this.#devices.set(id, record);
    return record;
  }

  /** Asks again while udev holds the char device or its node is not there yet. */
  async #fork(
    granted: GrantedDevice,
    spec: DeviceSpec,
    generation: number,
    sharedPage: number,
    files: readonly number[],
    kept: readonly number[],
  ): Promise<{ zygote: Zygote; pids: readonly number[]; pidfds: readonly number[] }> {
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
    for (;;) {
      const zygote = await this.#zygotes.get(spec.zygote);
      try {
        const { pids, pidfds } = await zygote.spawn(request, sharedPage, files, kept);
        return { zygote, pids, pidfds };
      } catch (error) {
        const busy = error instanceof SupervisorError && (error.code === 'EBUSY' || error.code === 'ENOENT');
        if (!busy || performance.now() > deadline) throw error;
        await setTimeout(SPAWN_RETRY_MS);
      }
    }
  }

  async startDevice({ id }: GrantedDevice, signal: AbortSignal): Promise<void> {
    await this.#serve('START_DEV', id, signal);
    await this.#noticeDeathsSoon(id);
  }

  /**
   * A setting that stays for the device's life. The kernel makes it when every request under way is answered, which may
   * take a recovery: so nobody waits for that, and it is made once.
   */
  async #noticeDeathsSoon(id: number): Promise<void> {
    if (!this.quirks.deathNoticedByTimeout) return;
    const path = `/sys/block/ublkb${String(id)}/queue/io_timeout`;
    if (Number(await readFile(path, 'utf8')) === OLD_KERNEL_IO_TIMEOUT_MS) return;
    const file = await open(path, 'w');
    // What can go wrong now is that the device goes.
    void writeAndClose(file, String(OLD_KERNEL_IO_TIMEOUT_MS)).catch(() => undefined);
  }

  async beginRecovery(id: number): Promise<void> {
    await this.#control('START_USER_RECOVERY', id, { action: controlAction.retryWhileBusy });
  }

  async endRecovery({ id }: GrantedDevice, signal: AbortSignal): Promise<void> {
    await this.#serve('END_USER_RECOVERY', id, signal);
    await this.#noticeDeathsSoon(id);
  }

  async updateSize(id: number, bytes: number): Promise<void> {
    await this.#control('UPDATE_SIZE', id, { data: bytes / SECTOR });
  }

  async #serve(command: ControlCommand, id: number, signal: AbortSignal): Promise<void> {
    const { zygote, fetchDeadlineMs, pages } = this.#record(id);
    // Which queue processes are alive is asked of their siblings.
    const parent = zygote ?? (await this.#zygotes.get());
    const details = { action: controlAction.whenFetched, data: parent.pid, sharedPage: pages.fd };
    await this.#controlBy(parent, command, id, details, signal, fetchDeadlineMs);
  }

  async assertUnused(id: number): Promise<void> {
    const holders = await holdersOf(id);
    if (holders.length > 0) throw inUse(id, holders);
  }

  async stopDevice(id: number, { force, served }: StopOptions): Promise<void> {
    try {
      if (served !== null) await this.#writeBack(id, force, served);
      // Before 7.0 nobody may mount the device between our looking and the stop; TRY_STOP_DEV looks itself.
      if (force) await this.#control('STOP_DEV', id, {});
      else if (this.#has('SAFE_STOP_DEV')) await this.#control('TRY_STOP_DEV', id, {});
      else await this.#control('STOP_DEV', id, { action: controlAction.claimed });
    } catch (error) {
      const code = error instanceof SupervisorError ? error.code : undefined;
      // Never started or already gone: nothing to stop.
      if (code === 'ENODEV') return;
      if (code === 'EBUSY') throw inUse(id, await holdersOf(id));
      throw error;
    }
  }

  /**
   * Dirty pages are on stable storage when this resolves. Its time-out is not STOP_DEV's: nothing was stopped yet, and
   * a stop without `force` must not go on.
   */
  async #writeBack(id: number, force: boolean, served: AbortSignal): Promise<void> {
    try {
      await this.#control('STOP_DEV', id, { action: controlAction.writeBack, exclusively: !force }, served);
    } catch (error) {
      if (error instanceof SupervisorError && error.code === 'EBUSY') throw error;
      // Pages that the device itself refuses are lost either way.
      if (force && error instanceof SupervisorError && error.errno !== undefined) return;
      throw new SupervisorError(`writing back /dev/ublkb${String(id)} failed: ${messageOf(error)}`, {
        code: 'WRITE_BACK',
        cause: error,
      });
    }
  }

  async deleteDevice(id: number): Promise<boolean> {
    try {
      await this.#control('DEL_DEV_ASYNC', id, {});
    } catch (error) {
      if (error instanceof SupervisorError && error.code === 'ENODEV') return true;
      throw error;
    }
    // The kernel does not announce the removal of the id.
    const deadline = performance.now() + REMOVAL_DEADLINE_MS;
    while (ublkDeviceInfo(id) !== null) {
      if (performance.now() > deadline) return false;
      await setTimeout(REMOVAL_POLL_MS);
    }
    return true;
  }

  queueStatus({ id, queues, depth }: GrantedDevice, generation: Generation | null): QueueStatus[] {
    const record = this.#devices.get(id);
    if (!record) return [];
    return Array.from({ length: queues }, (_, index) => {
      const { inflight, operations } = record.pages.readQueue(index);
      const operation = (kind: number): OperationStatus => operationStatus(operations[kind]);
      return {
        index,
        pid: generation && !generation.exited.aborted ? (generation.pids[index] ?? null) : null,
        depth,
        inflight,
        read: operation(0),
        write: operation(1),
        flush: operation(2),
        discard: operation(3),
        writeZeroes: operation(4),
      };
    });
  }

  unmark(id: number): void {
    this.#devices.get(id)?.pages.mark([]);
  }

  async release(id: number): Promise<void> {
    const record = this.#devices.get(id);
    this.#devices.delete(id);
    // A zygote that does not answer is ended, and with it goes what it kept.
    await record?.zygote?.forget(id).catch(() => undefined);
  }

  #has(feature: Parameters<typeof featureFlag>[0]): boolean {
    return (this.#features & featureFlag(feature)) !== 0n;
  }

  #record(id: number): DeviceRecord {
    const record = this.#devices.get(id);
    if (!record) throw new TypeError(`ublk device ${String(id)} has no generation`);
    return record;
  }

  #deviceFlags(spec: DeviceSpec): bigint {
    let flags = featureFlag('CMD_IOCTL_ENCODE') | featureFlag('USER_RECOVERY');
    if (spec.recovery === 'reissue') flags |= featureFlag('USER_RECOVERY_REISSUE');
    if (spec.recovery === 'fail-io') flags |= featureFlag('USER_RECOVERY_FAIL_IO');
    const dataPath = dataPathFeature[spec.dataPath];
    if (dataPath !== null) flags |= featureFlag(dataPath);
    if (this.#has('NO_AUTO_PART_SCAN')) flags |= featureFlag('NO_AUTO_PART_SCAN');
    return flags;
  }

  /** Runs one control command; a refusal by the kernel becomes an error with the errno's name as code. */
  async #control(
    command: ControlCommand,
    id: number,
    details: Partial<ControlRequest>,
    signal?: AbortSignal,
  ): Promise<ControlAnswer> {
    return this.#controlBy(await this.#zygotes.get(), command, id, details, signal, deadlineOf(details.action));
  }

  /** Likewise, in a child of this zygote. */
  async #controlBy(
    zygote: Zygote,
    command: ControlCommand,
    id: number,
    details: Partial<ControlRequest>,
    signal: AbortSignal | undefined,
    deadlineMs: number,
  ): Promise<ControlAnswer> {
    const request: ControlRequest = {
      action: controlAction.command,
      command: controlCommand[command],
      deviceId: id,
      exclusively: false,
      deadlineMs: COMMAND_DEADLINE_MS,
      data: 0,
      ...details,
    };
    const object = id === ANY_ID ? 'a new ublk device' : `ublk device ${String(id)}`;
    const operation = request.action === controlAction.writeBack ? 'write-back' : command;
    try {
      const answer = await zygote.control(request, deadlineMs, signal);
      if (answer.result >= 0) return answer;
      const code = errnoName(answer.result);
      throw new SupervisorError(`${operation} on ${object} failed: ${await reasonOf(command, id, code)} (${code})`, {
        code,
        errno: -answer.result,
      });
    } catch (error) {
      if (!(error instanceof SupervisorError) || error.errno !== undefined) throw error;
      throw new SupervisorError(`${operation} on ${object} failed: ${error.message}`, {
        code: error.code,
        cause: error,
      });
    }
  }
}

/** One that cannot be read gives way to an empty one, as of a generation that did not fetch: its processes can be ended. */
function leftPages({ queues, depth, sharedPage }: HeldByZygote): SharedPages {
  try {
    return reopenSharedPages(queues, depth, sharedPage);
  } catch {
    return createSharedPages(queues, depth);
  }
}

/** Where a process is who the zygote says: a child of it. null: it is gone. */
function childPidfd(pid: number, zygote: number): number | null {
  const pidfd = openPidfd(pid);
  if (pidfd === null) return null;
  if (parentOf(pid) === zygote) return pidfd;
  closeSync(pidfd);
  return null;
}

function deadlineOf(action: number | undefined): number {
  if (action === controlAction.writeBack) return WRITE_BACK_DEADLINE_MS;
  // The control process keeps the deadline of a retry itself, and answers then.
  return action === controlAction.retryWhileBusy ? 2 * COMMAND_DEADLINE_MS : COMMAND_DEADLINE_MS;
}

/** Buffers of the copy path are per tag and locked, so its requests are kept shorter. */
function maxIoBytes(spec: DeviceSpec): number {
  return spec.dataPath === 'copy' ? 2 ** 18 : 2 ** 20;
}

function operationStatus(operation: SharedOperation | undefined): OperationStatus {
  if (!operation) throw new TypeError('the shared page lacks an operation');
  const { count, bytes, errors, p50ns, p99ns } = operation;
  return { count, bytes, errors, p50us: Math.round(p50ns / 100) / 10, p99us: Math.round(p99ns / 100) / 10 };
}

async function writeAndClose(file: FileHandle, text: string): Promise<void> {
  await using opened = file;
  await opened.writeFile(text);
}

function inUse(id: number, holders: readonly string[]): SupervisorError {
  const by = holders.length > 0 ? holders.join(', ') : 'somebody';
  return new SupervisorError(
    `stopping /dev/ublkb${String(id)} failed: it is in use by ${by} (EBUSY); unmount or close it, or use --force`,
    { code: 'IN_USE' },
  );
}

/** What an errno of a control command means to the person who reads it. */
async function reasonOf(command: ControlCommand, id: number, code: string): Promise<string> {
  if (command === 'ADD_DEV' && code === 'EEXIST') {
    const owner = ublkDeviceInfo(id)?.ownerPid ?? 0;
    const by = owner > 0 ? ` by pid ${String(owner)}` : '';
    return `id ${String(id)} is taken${by}; choose another id or delete that device`;
  }
  if (command === 'ADD_DEV' && code === 'EACCES') {
    const limit = await readFile('/sys/module/ublk_drv/parameters/ublks_max', 'utf8').catch(() => '?');
    return `the limit of ${limit.trim()} ublk devices is reached; raise ublk_drv's parameter ublks_max`;
  }
  if (command === 'START_USER_RECOVERY' && code === 'EBUSY') {
    return 'the kernel does not let go of its dead queue processes; should recover not help, stop it with --force';
  }
  if (code === 'EPERM') return 'not permitted; run as root';
  return 'refused by the kernel';
}
