import fc from 'fast-check';

/** The fewest with which one reads what another wrote. */
export const QUEUES = 2;

export type OperationKind = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes';

/** One request as a client of the device could cause it. */
export interface Operation {
  readonly kind: OperationKind;
  readonly queue: number;
  readonly block: number;
  readonly blocks: number;
  /** FUA of a write, `mayUnmap` of writing zeros. */
  readonly flag: boolean;
  /** Begins while those before it are under way, unless one of them needs the same blocks. */
  readonly together: boolean;
}

/** An operation of one block on queue 0 that begins when those before it are done; `rest` says what is different. */
export function operation(kind: OperationKind, block: number, rest: Partial<Operation> = {}): Operation {
  return { kind, block, blocks: 1, queue: 0, flag: false, together: false, ...rest };
}

/** Sequences of operations for a device of `total` blocks, most of them near its ends and short. */
export function operations(
  kinds: readonly OperationKind[],
  { total, largest, queues }: { readonly total: number; readonly largest: number; readonly queues: number },
): fc.Arbitrary<Operation[]> {
  const last = total - 1;
  const near = fc.integer({ min: 0, max: Math.min(last, 40) });
  const block = fc.oneof(
    near,
    near.map((distance) => last - distance),
    fc.integer({ min: 0, max: last }),
  );
  const blocks = fc.oneof(
    { weight: 5, arbitrary: fc.integer({ min: 1, max: Math.min(largest, 9) }) },
    { weight: 1, arbitrary: fc.integer({ min: 1, max: largest }) },
  );
  const one = fc
    .record({
      kind: fc.constantFrom(...kinds),
      queue: fc.nat(queues - 1),
      block,
      blocks,
      flag: fc.boolean(),
      together: fc.boolean(),
    })
    .map((each) => ({ ...each, blocks: Math.min(each.blocks, total - each.block) }));
  return fc.array(one, { maxLength: 30, size: 'max' });
}

/** Whether the kernel would not have both under way: they need a block in common that one of them changes. */
export function conflict(one: Operation, other: Operation): boolean {
  if (one.kind === 'flush' || other.kind === 'flush') return false;
  const apart = one.block + one.blocks <= other.block || other.block + other.blocks <= one.block;
  return !apart && (one.kind !== 'read' || other.kind !== 'read');
}

/** `queue 1: write of 8192 bytes at 4096 (blocks 1 to 2) with FUA, together with what is under way`. */
export function describeOperation(operation: Operation, blockSize: number, choosesQueue: boolean): string {
  const { kind, queue, block, blocks, flag, together } = operation;
  const range =
    kind === 'flush' ? '' : ` of ${blocks * blockSize} bytes at ${block * blockSize} (${place(block, blocks)})`;
  const with_ = flag
    ? { write: ' with FUA', writeZeroes: ' with mayUnmap', read: '', flush: '', discard: '' }[kind]
    : '';
  const where = choosesQueue ? `queue ${queue}: ` : '';
  return `${where}${kind}${range}${with_}${together ? ', together with what is under way' : ''}`;
}

function place(block: number, blocks: number): string {
  return blocks === 1 ? `block ${block}` : `blocks ${block} to ${block + blocks - 1}`;
}
