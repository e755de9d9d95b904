/** `FaultAction` of fault_rules.hpp. */
export const FaultAction = {
  error: 1,
  delay: 2,
  hang: 3,
  drop: 4,
  torn: 5,
  corrupt: 6,
  shorten: 7,
  misdirect: 8,
  full: 9,
  throttle: 10,
  crash: 11,
  stop: 12,
  badBlocks: 13,
} as const;

/** `DelayKind`, `TornEnd` and `CorruptKind` of fault_rules.hpp. */
export const DelayKind = { fixed: 0n, uniform: 1n, exponential: 2n, samples: 3n } as const;
export const TornEnd = { ok: 0n, error: 1n, crash: 2n } as const;
export const CorruptKind = { bits: 0n, bytes: 1n, byteAt: 2n } as const;

/** `kMaxFaultRules`, `kMaxFaultSamples`, `kMaxBadBlocks` and `kMaxFaultText` of fault_rules.hpp. */
export const MOST_FAULT_RULES = 64;
export const MOST_FAULT_SAMPLES = 256;
export const MOST_BAD_BLOCKS = 4096;
export const LONGEST_FAULT_TEXT = 2047;

/** The largest 64-bit number: an end that is open, a probability that is certainty. */
export const UNLIMITED = 2n ** 64n - 1n;

/** A rule as the queues read it; `FaultRule` of fault_rules.hpp. */
export interface CompiledFault {
  readonly action: number;
  readonly active: boolean;
  readonly operations: number;
  readonly sequence: number;
  readonly perSector: boolean;
  /** 1 + the slot of the rule that has to have hit; 0: none. */
  readonly afterHitOf: number;
  readonly start: bigint;
  readonly end: bigint;
  readonly every: bigint;
  readonly after: bigint;
  readonly count: bigint;
  readonly probability: bigint;
  readonly fromNs: bigint;
  readonly untilNs: bigint;
  readonly key: bigint;
  readonly arguments: BigUint64Array;
  readonly samplesUs: Uint32Array;
  readonly badBlocks: BigUint64Array;
  readonly writesUntilGood: number;
  /** What a later supervisor finds. */
  readonly text: string;
}

/** `kept`: the rule is changed in part, and its counters go on. */
export type FaultChange = CompiledFault & { readonly kept: boolean };

export interface FaultInSlot {
  readonly slot: number;
  readonly text: string;
  readonly matches: number;
  readonly hits: number;
}

export interface FaultHit {
  /** From 1, over all rules of the device. */
  readonly number: number;
  readonly realtimeMs: number;
  readonly slot: number;
  /** Which of the rule's matches it was, from 0. */
  readonly match: number;
  readonly operation: number;
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
}
