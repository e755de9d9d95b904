import fc from 'fast-check';
import { messageOf } from '../../errors.js';
import type { TestDevice } from './test-device.js';
import { QUEUES, operation, operations, type Operation, type OperationKind } from './operations.js';

export interface Check {
  readonly name: string;
  /** Left out for a backend that cannot do this. */
  readonly needs?: OperationKind | 'idempotentWrites';
  /** Rejects with what is wrong. */
  readonly run: (device: TestDevice, random: RandomSettings) => Promise<void>;
}

export interface RandomSettings {
  readonly seed: number;
  readonly runs: number;
}

/** Shrinking a request that hangs would take minutes. */
const RANDOM_LIMIT_MS = 60_000;
const MANY = 64;

export const checks: readonly Check[] = [
  {
    name: 'reads at every edge, and the same again on the other queue',
    run: (device) => device.perform(edges(device).map((range) => operation('read', range.block, range))),
  },
  {
    name: 'reads what was written, at every edge',
    needs: 'write',
    run: (device) => device.perform(edges(device).flatMap((range) => amidst(device, 'write', range))),
  },
  {
    name: 'what one queue wrote, the other reads and overwrites',
    needs: 'write',
    run: (device) =>
      device.perform(
        [0, 1, 0, 1].flatMap((queue) => [
          operation('write', 0, { queue }),
          operation('read', 0, { queue: 1 - queue }),
          operation('write', device.blocks - 1, { queue: 1 - queue }),
          operation('read', device.blocks - 1, { queue }),
        ]),
      ),
  },
  {
    name: 'many requests at once',
    needs: 'write',
    run: async (device) => {
      const count = Math.min(MANY, device.blocks);
      const atOnce = (kind: (index: number) => OperationKind): Operation[] =>
        Array.from({ length: count }, (_each, index) =>
          operation(kind(index), index, { queue: index % QUEUES, together: index > 0 }),
        );
      await device.perform([
        ...atOnce(() => 'write'),
        ...atOnce(() => 'read'),
        ...atOnce((index) => (index % 3 === 0 ? 'write' : 'read')),
        ...atOnce(() => 'read'),
      ]);
    },
  },
  {
    name: 'flush, alone, twice and with writes under way',
    needs: 'flush',
    run: (device) =>
      device.perform([
        operation('flush', 0),
        operation('flush', 0, { queue: 1 }),
        operation('write', 0, { flag: true }),
        operation('write', device.blocks - 1, { queue: 1, together: true }),
        operation('flush', 0, { together: true }),
        operation('flush', 0, { queue: 1, together: true }),
      ]),
  },
  {
    name: 'discard changes nothing beside its range',
    needs: 'discard',
    run: (device) => device.perform(edges(device).flatMap((range) => amidst(device, 'discard', range))),
  },
  {
    name: 'writeZeroes leaves zeros, and changes nothing beside its range',
    needs: 'writeZeroes',
    run: (device) =>
      device.perform(
        edges(device).flatMap((range) => [
          ...amidst(device, 'writeZeroes', range),
          ...amidst(device, 'writeZeroes', { ...range, flag: true }),
        ]),
      ),
  },
  { name: 'random operations', run: randomOperations },
  {
    name: 'answers what is under way when it drains; closes; opened again, it has its data',
    run: async (device) => {
      const ranges = edges(device);
      await device.perform(ranges.map((range) => operation('write', range.block, range)));
      await device.close([
        ...ranges.map((range) => operation('read', range.block, { ...range, together: true })),
        operation('flush', 0, { together: true }),
      ]);
      await device.replace();
      await device.verify();
    },
  },
  {
    name: 'opened again after its process was killed, it has all that was answered',
    needs: 'write',
    run: async (device) => {
      await device.perform(
        edges(device).map((range, index) => operation('write', range.block, { ...range, flag: index % 2 === 0 })),
      );
      await device.replace();
      await device.verify();
    },
  },
];

/** Of a block device, which has to hide from its clients that queue processes crashed. */
export const blockDeviceChecks: readonly Check[] = [
  ...checks,
  {
    name: 'answers what is under way when its processes are killed',
    needs: 'idempotentWrites',
    run: async (device) => {
      const count = Math.min(MANY, device.blocks);
      const blocks = Math.min(Math.floor(device.blocks / count), device.largest);
      const atOnce = (kind: OperationKind): Operation[] =>
        Array.from({ length: count }, (_each, index) => operation(kind, index * blocks, { blocks, together: true }));
      await device.perform(atOnce('write'));
      for (const kind of ['write', 'read', 'write'] as const) await device.performAmidCrash(atOnce(kind));
      await device.verify();
    },
  },
];

interface Range {
  readonly block: number;
  readonly blocks: number;
  readonly flag?: boolean;
}

/** First and last blocks, short and long ranges, also such that are no power of two long. */
function edges({ blocks, largest }: TestDevice): Range[] {
  const lengths = new Set([1, 2, 3, 7, largest - 1, largest].filter((length) => length >= 1 && length <= blocks));
  return [...lengths].flatMap((length) => [
    { block: 0, blocks: length },
    { block: Math.floor((blocks - length) / 2), blocks: length },
    { block: blocks - length, blocks: length },
  ]);
}

/** `kind` within a range that was written before, so that damage beside it shows; then a write to the same place. */
function amidst({ blocks: total, largest }: TestDevice, kind: OperationKind, range: Range): Operation[] {
  const first = Math.max(0, range.block - 1);
  const around = { blocks: Math.min(range.blocks + 2, total - first, largest) };
  return [
    operation('write', first, around),
    operation(kind, range.block, range),
    operation('read', first, { ...around, queue: 1 }),
    operation('write', range.block, range),
    operation('read', first, around),
  ];
}

async function randomOperations(device: TestDevice, { seed, runs }: RandomSettings): Promise<void> {
  const kinds = (['read', 'write', 'flush', 'discard', 'writeZeroes'] as const).filter((kind) => device.can(kind));
  const sequences = operations(kinds, { total: device.blocks, largest: device.largest, queues: QUEUES });
  /** What was begun of the sequence that failed last, which in the end is the one shrunk most. */
  let failed: readonly Operation[] = [];
  let broken = false;
  const property = fc.asyncProperty(sequences, async (sequence) => {
    // What failed may have left requests under way.
    if (broken) await device.reset();
    const begun: Operation[] = [];
    try {
      await device.perform(sequence, (each) => begun.push(each));
      broken = false;
    } catch (error) {
      failed = begun;
      broken = true;
      throw error;
    }
  });
  const result = await fc.check(property, { seed, numRuns: runs, interruptAfterTimeLimit: RANDOM_LIMIT_MS });
  if (!result.failed) return;
  const lines = failed.map((each) => `  ${device.describe(each)}`);
  const count = `${lines.length} ${lines.length === 1 ? 'operation' : 'operations'}`;
  throw new Error([messageOf(result.errorInstance), `after ${count}, with --seed ${seed}:`, ...lines].join('\n'));
}
