import type { SharedPages } from '../../native/addon/shared-pages.js';
import type { Zygote } from '../zygote/zygote.js';
import type { ZygoteKeeper } from '../zygote/zygote-keeper.js';
import { COMMAND_DEADLINE_MS } from './commands.js';
import type { FailureReports } from './failure-reports.js';
import type { ProcessGeneration } from './generation.js';
import type { DeviceSpec, GrantedDevice } from './kernel.js';

/** Queue processes with a JavaScript backend boot node, load the backend and open it before they fetch. */
const JAVASCRIPT_FETCH_DEADLINE_MS = 60_000;

/** What is kept for a device between its generations. */
export interface DeviceRecord {
  readonly granted: GrantedDevice;
  /** Which forks its generations and runs its control commands; null: an earlier supervisor left none. */
  zygote: Zygote | null;
  /** Another one, on its way. */
  forking: Promise<Zygote> | null;
  /** null: it never had a generation. */
  pages: SharedPages | null;
  /** null exactly while `pages` is. */
  failures: FailureReports | null;
  generation: ProcessGeneration | null;
  /** How long FETCHes may be waited for. */
  fetchDeadlineMs: number;
}

/** Our devices in the kernel, by id, and the zygote of each. */
export class DeviceRecords {
  readonly #zygotes: Pick<ZygoteKeeper, 'fork' | 'nursery'>;
  readonly #records = new Map<number, DeviceRecord>();

  constructor(zygotes: Pick<ZygoteKeeper, 'fork' | 'nursery'>) {
    this.#zygotes = zygotes;
  }

  add(granted: GrantedDevice, spec: DeviceSpec, zygote: Zygote | null): DeviceRecord {
    const fetchDeadlineMs = spec.backend.module === null ? COMMAND_DEADLINE_MS : JAVASCRIPT_FETCH_DEADLINE_MS;
    const empty = { zygote: null, forking: null, pages: null, failures: null, generation: null };
    const record: DeviceRecord = { granted, ...empty, fetchDeadlineMs };
    if (zygote !== null) useZygote(record, zygote);
    // A device of ours of that id was deleted, and may not be released yet.
    const before = this.#records.get(granted.id);
    this.#records.set(granted.id, record);
    void before?.zygote?.retire();
    return record;
  }

  /** Throws unless the device is one of ours. */
  get(id: number): DeviceRecord {
    const record = this.#records.get(id);
    if (!record) throw new TypeError(`ublk device ${id} is not in the kernel`);
    return record;
  }

  find(id: number): DeviceRecord | undefined {
    return this.#records.get(id);
  }

  /** Forgets the device, unless its id is another's by now. */
  async release(granted: GrantedDevice): Promise<void> {
    const record = this.#records.get(granted.id);
    if (record?.granted !== granted) return;
    this.#records.delete(granted.id);
    await record.zygote?.retire();
  }

  /** The device's own zygote, or another that takes its place when it is gone, or when it is not of `nursery`. */
  zygoteOf(id: number, nursery?: number): Promise<Zygote> {
    const record = this.get(id);
    const { zygote } = record;
    if (zygote?.alive === true && (nursery === undefined || zygote.nursery === nursery)) return Promise.resolve(zygote);
    record.forking ??= this.#replaceZygote(record, nursery ?? this.#zygotes.nursery(null)).finally(() => {
      record.forking = null;
    });
    return record.forking;
  }

  async #replaceZygote(record: DeviceRecord, nursery: number): Promise<Zygote> {
    const zygote = await this.#zygotes.fork(nursery);
    useZygote(record, zygote);
    return zygote;
  }
}

function useZygote(record: DeviceRecord, zygote: Zygote): void {
  record.zygote = zygote;
  zygote.onExit = (notice) => record.generation?.onNotice(notice);
}
