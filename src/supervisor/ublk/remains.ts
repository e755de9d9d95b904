import type { SharedPages } from '../../native/addon/shared-pages.js';
import type { Remains } from './kernel.js';
import { operationNames } from '../../api/operations.js';
import type { OperationName } from '../../api/status.js';

type Counts = Readonly<Record<OperationName, number>>;

/** Requests answered so far, in all queues and generations. */
export function answeredCounts(pages: SharedPages, queues: number): Counts {
  const states = Array.from({ length: queues }, (_, queue) => pages.readQueue(queue));
  return countsOf((_, kind) => states.reduce((sum, { operations }) => sum + (operations[kind]?.count ?? 0), 0));
}

/** What is left of a generation that died `sinceMs` ago, having begun with `before` requests answered. */
export function readRemains(
  pages: SharedPages,
  queues: number,
  sinceMs: number,
  before: Counts,
): Omit<Remains, 'died' | 'hung' | 'phase'> {
  const indices = Array.from({ length: queues }, (_, queue) => queue);
  const atDeath = (ms: number): number => Math.max(0, ms - sinceMs);
  const outstanding = indices.flatMap((queue) =>
    pages.outstanding(queue).map(({ operation, startSector, sectors, ageMs }) => {
      return { operation, startSector, sectors, queue, ageMs: atDeath(ageMs) };
    }),
  );
  const answers = indices.flatMap((queue) => pages.readQueue(queue).sinceAnswerMs ?? []);
  const after = answeredCounts(pages, queues);
  return {
    outstanding,
    marked: pages.marked(),
    answered: countsOf((name) => after[name] - before[name]),
    lastAnswerMs: answers.length === 0 ? null : atDeath(Math.min(...answers)),
  };
}

function countsOf(count: (name: OperationName, kind: number) => number): Counts {
  return Object.fromEntries(operationNames.map((name, kind) => [name, count(name, kind)])) as Counts;
}
