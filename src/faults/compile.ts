import { constants } from 'node:os';
import {
  CorruptKind,
  DelayKind,
  FaultAction,
  LONGEST_FAULT_TEXT,
  MOST_BAD_BLOCKS,
  TornEnd,
  UNLIMITED,
  type CompiledFault,
} from '../native/addon/fault-area.js';
import { SupervisorError } from '../errors.js';
import { parseNanoseconds, parseSize } from '../units.js';
import {
  actionOf,
  actions,
  errnoNumber,
  faultOperations,
  parseDistance,
  parseProbability,
  parseStretch,
  type FaultActionInput,
  type FaultOperation,
  type FaultRule,
} from './rule.js';

/** The device that a rule is for. */
export interface FaultyDevice {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  readonly blockSize: number;
}

/** What only the device's supervisor knows of a rule. */
export interface FaultPlace {
  /** Rules are tried in this order. */
  readonly sequence: number;
  /** CLOCK_MONOTONIC, nanoseconds: when the rule was made. */
  readonly madeNs: bigint;
  readonly active: boolean;
  /** 1 + the slot of the rule of `afterHitOf`; 0: it has none. */
  readonly afterHitOf: number;
}

type Work = Pick<CompiledFault, 'action'> & {
  readonly arguments?: readonly bigint[];
  readonly samplesUs?: readonly number[];
  readonly badBlocks?: readonly bigint[];
  readonly writesUntilGood?: number;
};

/** Throws `CONFIG` when the rule is for a place that the device does not have. A device may become smaller afterwards. */
export function assertFits(rule: FaultRule, device: FaultyDevice): void {
  const places = typeof rule.do === 'object' && 'badBlocks' in rule.do ? rule.do.badBlocks.at : [];
  for (const text of rule.range === undefined ? places : [rule.range, ...places]) {
    if (valid(parseStretch(text)).offset < device.size) continue;
    throw refused(rule, device, `${text} begins behind the end of the device, which has ${device.size} bytes`);
  }
}

/** The rule as the queues read it. Throws `CONFIG` when there is no room for it. */
export function compileFault(rule: FaultRule, device: FaultyDevice, place: FaultPlace): CompiledFault {
  const stretch = rule.range === undefined ? undefined : valid(parseStretch(rule.range));
  const madeNs = place.madeNs;
  const fromNs = rule.from === undefined ? madeNs : madeNs + nanoseconds(rule.from);
  const timed = rule.from !== undefined || rule.for !== undefined;
  const text = JSON.stringify({ rule, sequence: place.sequence, madeNs: String(madeNs) });
  if (Buffer.byteLength(text) > LONGEST_FAULT_TEXT) throw refused(rule, device, 'it is too long; make two of it');
  const { action, arguments: args = [], samplesUs = [], badBlocks = [], writesUntilGood = 0 } = workOf(rule, device);
  return {
    action,
    arguments: BigUint64Array.from(args),
    samplesUs: Uint32Array.from(samplesUs),
    badBlocks: BigUint64Array.from(badBlocks),
    writesUntilGood,
    active: place.active,
    operations: operationBits(rule.on ?? actions[actionOf(rule.do)].usual),
    sequence: place.sequence,
    perSector: rule.per === 'sector',
    afterHitOf: place.afterHitOf,
    start: BigInt(stretch?.offset ?? 0),
    end: stretch?.length === undefined ? UNLIMITED : BigInt(stretch.offset + stretch.length),
    every: BigInt(rule.every ?? 1),
    after: BigInt(rule.after ?? 0),
    count: BigInt(rule.count ?? 0),
    probability: share(valid(parseProbability(rule.probability ?? 1))),
    fromNs: timed ? fromNs : 0n,
    untilNs: rule.for === undefined ? UNLIMITED : fromNs + nanoseconds(rule.for),
    key: keyOf(rule.id, rule.seed ?? 0),
    text,
  };
}

function operationBits(on: readonly FaultOperation[]): number {
  return on.reduce((bits, operation) => bits | (1 << faultOperations.indexOf(operation)), 0);
}

function workOf(rule: FaultRule, device: FaultyDevice): Work {
  const what: FaultActionInput = rule.do;
  if (what === 'hang') return { action: FaultAction.hang };
  if (what === 'drop') return { action: FaultAction.drop };
  if (what === 'stop') return { action: FaultAction.stop };
  if (what === 'short') return { action: FaultAction.shorten, arguments: [BigInt(device.blockSize)] };
  if ('error' in what) return { action: FaultAction.error, arguments: [BigInt(valid(errnoNumber(what.error)))] };
  if ('hang' in what) return { action: FaultAction.hang, arguments: [what.hang.watchdog ? 1n : 0n] };
  if ('delay' in what) return delayOf(what.delay);
  if ('torn' in what) {
    const { sectors, then = 'ok' } = what.torn;
    return { action: FaultAction.torn, arguments: [BigInt(sectors), TornEnd[then], BigInt(constants.errno.EIO)] };
  }
  if ('corrupt' in what) return corruptOf(what.corrupt);
  if ('misdirect' in what) {
    return {
      action: FaultAction.misdirect,
      arguments: [BigInt.asUintN(64, BigInt(valid(parseDistance(what.misdirect.by))))],
    };
  }
  if ('full' in what) return { action: FaultAction.full, arguments: [BigInt(valid(parseSize(what.full.after)))] };
  if ('throttle' in what) {
    const { iops, bytes } = { iops: undefined, ...what.throttle };
    const each = iops === undefined ? 0n : BigInt(Math.round(1e9 / iops));
    return { action: FaultAction.throttle, arguments: [each, BigInt(valid(parseSize(bytes ?? 0)))] };
  }
  if ('crash' in what) return { action: FaultAction.crash, arguments: [what.crash === 'before' ? 0n : 1n] };
  const { at, failingWrites = 0 } = what.badBlocks;
  const badBlocks = [...new Set(at.flatMap((one) => blocksOf(rule, one, device)))].sort((a, b) => Number(a - b));
  return {
    action: FaultAction.badBlocks,
    arguments: [0n, 0n, BigInt(device.blockSize)],
    badBlocks,
    writesUntilGood: failingWrites + 1,
  };
}

function delayOf(delay: Extract<FaultActionInput, { delay: unknown }>['delay']): Work {
  const action = FaultAction.delay;
  if (typeof delay === 'string') return { action, arguments: [DelayKind.fixed, nanoseconds(delay)] };
  if ('uniform' in delay) {
    const [least, most] = delay.uniform;
    return { action, arguments: [DelayKind.uniform, nanoseconds(least), nanoseconds(most)] };
  }
  if ('exponential' in delay) return { action, arguments: [DelayKind.exponential, nanoseconds(delay.exponential)] };
  const samplesUs = delay.samples.map((sample) => Number(nanoseconds(sample) / 1000n));
  return { action, arguments: [DelayKind.samples], samplesUs };
}

function corruptOf(corrupt: Extract<FaultActionInput, { corrupt: unknown }>['corrupt']): Work {
  const action = FaultAction.corrupt;
  if ('byte' in corrupt) {
    return { action, arguments: [CorruptKind.byteAt, BigInt(corrupt.byte), BigInt(corrupt.value)] };
  }
  const stuck = corrupt.stuck === true ? 1n : 0n;
  if ('bits' in corrupt) return { action, arguments: [CorruptKind.bits, BigInt(corrupt.bits), 0n, stuck] };
  return { action, arguments: [CorruptKind.bytes, BigInt(corrupt.bytes), 0n, stuck] };
}

function blocksOf(rule: FaultRule, text: string, device: FaultyDevice): readonly bigint[] {
  const { offset, length = 1 } = valid(parseStretch(text));
  const first = Math.floor(offset / device.blockSize);
  const last = Math.floor((Math.min(offset + length, device.size) - 1) / device.blockSize);
  if (last - first >= MOST_BAD_BLOCKS)
    throw refused(rule, device, `a device has room for ${MOST_BAD_BLOCKS} bad blocks`);
  return Array.from({ length: Math.max(last - first + 1, 0) }, (_, index) => BigInt(first + index));
}

function refused({ id }: FaultRule, { name }: FaultyDevice, reason: string): SupervisorError {
  return new SupervisorError(`fault rule ${id} of device ${name}: ${reason}`, { code: 'CONFIG', device: name });
}

/** What `faultRule` has made sure of. */
function valid<Value>(value: Value | undefined): Value {
  if (value === undefined) throw new TypeError('a fault rule was not validated');
  return value;
}

function nanoseconds(text: string): bigint {
  return BigInt(valid(parseNanoseconds(text)));
}

/** Of 2^64. */
function share(probability: number): bigint {
  return probability >= 1 ? UNLIMITED : BigInt(Math.floor(probability * 2 ** 53)) << 11n;
}

/** FNV-1a of the id, from the seed on: rules of the same seed choose differently. */
function keyOf(id: string, seed: number): bigint {
  let key = 0xcbf29ce484222325n ^ BigInt(seed);
  for (const byte of Buffer.from(id)) key = BigInt.asUintN(64, (key ^ BigInt(byte)) * 0x100000001b3n);
  return key;
}
