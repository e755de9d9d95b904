import { access } from 'node:fs/promises';
import * as z from 'zod';
import type { FaultHitStatus, FaultRuleStatus } from '../../api/status.js';
import { operationNameOf } from '../../api/operations.js';
import { SupervisorError } from '../../errors.js';
import { assertFits, compileFault, type FaultyDevice } from '../../faults/compile.js';
import { faultRule, type FaultRule, type WrittenFaultRule } from '../../faults/rule.js';
import {
  MOST_BAD_BLOCKS,
  MOST_FAULT_RULES,
  type CompiledFault,
  type FaultChange,
  type FaultHit,
  type FaultInSlot,
} from '../../native/addon/fault-area.js';
import type { FaultSlot } from '../ublk/kernel.js';
import { validate } from '../../problems.js';

/** How often the supervisor looks whether the file of a rule's `whileFile` is there. */
const FILE_POLL_MS = 50;

interface Entry {
  readonly slot: number;
  readonly rule: FaultRule;
  readonly sequence: number;
  readonly madeNs: bigint;
  active: boolean;
  looking: boolean;
}

interface DeviceFaultsOptions {
  /** Those of the configuration; undefined: the device may have none. */
  readonly rules: readonly WrittenFaultRule[] | undefined;
  readonly device: () => FaultyDevice;
  /** The counters of the rules. */
  readonly counted: () => readonly FaultInSlot[];
  /** Brings a change of one rule to the queues. `kept`: its counters go on. */
  readonly write: (slot: number, rule: FaultChange | null) => void;
}

/** What an earlier supervisor wrote beside a rule. */
const left = z.object({
  rule: faultRule,
  sequence: z
    .int()
    .min(1)
    .max(2 ** 32 - 1),
  madeNs: z.string().regex(/^[0-9]{1,20}$/),
});

/** The fault rules of one device, and which of the shared page's slots each has. */
export class DeviceFaults {
  readonly #options: DeviceFaultsOptions;
  readonly #entries = new Map<string, Entry>();
  #sequence = 0;
  #made = 0;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: DeviceFaultsOptions) {
    this.#options = options;
    for (const rule of options.rules ?? []) this.#enter(rule);
  }

  /** The configuration says that the device may have rules. */
  get allowed(): boolean {
    return this.#options.rules !== undefined;
  }

  /** Throws `CONFIG` when a rule does not fit the device. */
  assertFit(device: FaultyDevice): void {
    for (const { rule } of this.#entries.values()) assertFits(rule, device);
  }

  /** null: the device may have none. */
  slots(): readonly FaultSlot[] | null {
    if (!this.allowed) return null;
    return [...this.#entries.values()].map((entry) => ({ slot: entry.slot, rule: this.#compiled(entry) }));
  }

  /** Validates and adds a rule; returns it with its id. */
  add(input: unknown): FaultRule {
    const { name } = this.#options.device();
    if (!this.allowed) {
      const advice = 'put "faults": [] into its configuration and restart it';
      throw new SupervisorError(`adding a fault to device ${name} failed: its configuration allows none; ${advice}`, {
        code: 'REFUSED',
        device: name,
      });
    }
    const rule = validate(faultRule, input, 'rule');
    this.#assertPossible(rule);
    const entry = this.#enter(rule);
    try {
      assertFits(entry.rule, this.#options.device());
      this.#assertRoom();
      this.#options.write(entry.slot, { ...this.#compiled(entry), kept: false });
    } catch (error) {
      this.#entries.delete(entry.rule.id);
      throw error;
    }
    return entry.rule;
  }

  remove(id: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) {
      const { name } = this.#options.device();
      const message = `removing fault ${id} of device ${name} failed: there is no such rule; see fault list`;
      throw new SupervisorError(message, { code: 'NOT_FOUND', device: name });
    }
    this.#entries.delete(id);
    this.#options.write(entry.slot, null);
  }

  clear(): void {
    for (const id of [...this.#entries.keys()]) this.remove(id);
  }

  /** In the order in which they are tried. */
  status(): readonly FaultRuleStatus[] {
    const counted = this.#options.counted();
    return [...this.#entries.values()].map(({ rule, slot, active }) => {
      const { matches = 0, hits = 0 } = counted.find((one) => one.slot === slot) ?? {};
      return { ...rule, active, matches, hits };
    });
  }

  hits(hits: readonly FaultHit[]): readonly FaultHitStatus[] {
    const ids = new Map([...this.#entries.values()].map(({ slot, rule }) => [slot, rule.id]));
    return hits.map(({ number, realtimeMs, slot, match, operation, offset, length }) => ({
      number,
      at: new Date(realtimeMs).toISOString(),
      rule: ids.get(slot) ?? null,
      match,
      operation: operationNameOf(operation),
      offset,
      length,
    }));
  }

  /**
   * Takes over what an earlier supervisor had made of the rules; what is no rule any more goes, as a queue process may have
   * written it. Each is written again: that supervisor may have died while it wrote one.
   */
  restore(found: readonly FaultInSlot[]): void {
    this.#entries.clear();
    const known = found.flatMap(({ slot, text }) => {
      const parsed = left.safeParse(jsonOf(text));
      return parsed.success ? [{ slot, ...parsed.data }] : [];
    });
    for (const { slot, rule, sequence, madeNs } of known.sort((a, b) => a.sequence - b.sequence)) {
      if (rule.id === undefined || this.#entries.has(rule.id)) continue;
      this.#sequence = sequence - 1;
      const entry = this.#enter(rule, slot, BigInt(madeNs));
      try {
        this.#options.write(slot, { ...this.#compiled(entry), kept: true });
      } catch (error) {
        if (!(error instanceof SupervisorError)) throw error;
        this.#entries.delete(rule.id);
      }
    }
    const taken = new Set([...this.#entries.values()].map(({ slot }) => slot));
    for (const { slot } of found) if (!taken.has(slot)) this.#options.write(slot, null);
  }

  /** To be called when the device is gone. */
  end(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  /** Throws `CONFIG` when there is no place for the rule beside the others. */
  #assertPossible({ id, afterHitOf }: WrittenFaultRule): void {
    const { name } = this.#options.device();
    const refuse = (reason: string): SupervisorError =>
      new SupervisorError(`adding fault ${id ?? 'rule'} to device ${name} failed: ${reason}`, {
        code: 'CONFIG',
        device: name,
      });
    if (id !== undefined && this.#entries.has(id))
      throw refuse('there is a rule of that id; remove it or choose another id');
    if (this.#entries.size >= MOST_FAULT_RULES) throw refuse(`a device has at most ${MOST_FAULT_RULES} rules`);
    if (afterHitOf !== undefined && !this.#entries.has(afterHitOf)) {
      throw refuse(`there is no rule ${afterHitOf} before it, as afterHitOf has it`);
    }
  }

  #enter(rule: WrittenFaultRule, slot = this.#freeSlot(), madeNs = process.hrtime.bigint()): Entry {
    const id = rule.id ?? this.#newId();
    this.#sequence += 1;
    const active = rule.whileFile === undefined;
    const entry: Entry = { slot, rule: { ...rule, id }, sequence: this.#sequence, madeNs, active, looking: false };
    this.#entries.set(id, entry);
    if (!active) this.#timer ??= setInterval(() => this.#lookForFiles(), FILE_POLL_MS).unref();
    return entry;
  }

  /** The device's list of bad blocks is one for all rules. */
  #assertRoom(): void {
    const blocks = [...this.#entries.values()].reduce((sum, one) => sum + this.#compiled(one).badBlocks.length, 0);
    if (blocks <= MOST_BAD_BLOCKS) return;
    const { name } = this.#options.device();
    const message = `adding a fault to device ${name} failed: it has room for ${MOST_BAD_BLOCKS} bad blocks, not ${blocks}`;
    throw new SupervisorError(message, { code: 'CONFIG', device: name });
  }

  #freeSlot(): number {
    const taken = new Set([...this.#entries.values()].map(({ slot }) => slot));
    let slot = 0;
    while (taken.has(slot)) slot++;
    return slot;
  }

  #newId(): string {
    do this.#made += 1;
    while (this.#entries.has(`fault-${this.#made}`));
    return `fault-${this.#made}`;
  }

  #compiled({ rule, sequence, madeNs, active }: Entry): CompiledFault {
    const other = rule.afterHitOf === undefined ? undefined : this.#entries.get(rule.afterHitOf);
    const afterHitOf = other === undefined ? 0 : other.slot + 1;
    // What waits for a rule that is gone waits for ever.
    const waits = rule.afterHitOf !== undefined && other === undefined;
    return compileFault(rule, this.#options.device(), { sequence, madeNs, active: active && !waits, afterHitOf });
  }

  /** One look at a time at each: the file may be where nothing answers. */
  #lookForFiles(): void {
    for (const entry of this.#entries.values()) {
      const { whileFile } = entry.rule;
      if (whileFile === undefined || entry.looking) continue;
      entry.looking = true;
      void access(whileFile)
        .then(() => true)
        .catch(() => false)
        .then((there) => {
          entry.looking = false;
          if (there !== entry.active && this.#entries.get(entry.rule.id) === entry) this.#activate(entry, there);
        });
    }
  }

  #activate(entry: Entry, active: boolean): void {
    entry.active = active;
    this.#options.write(entry.slot, { ...this.#compiled(entry), kept: true });
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
