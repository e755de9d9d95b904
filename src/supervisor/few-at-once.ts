import { setTimeout } from 'node:timers/promises';

const AT_ONCE = 8;

/**
 * Does the same for each item, in order and a few at a time: what has to answer before a deadline would else wait for the
 * processes of hundreds of others, and ours. One that takes longer than `patienceMs` no longer counts, and keeps none waiting.
 * Resolves when all are done, with how, item by item.
 */
export async function fewAtOnce<Item, Result>(
  items: readonly Item[],
  act: (item: Item) => Promise<Result>,
  patienceMs?: number,
): Promise<readonly PromiseSettledResult<Result>[]> {
  const done: Promise<Result>[] = [];
  const next = items.entries();
  const goOn = async (): Promise<void> => {
    for (const [index, item] of next) {
      const one = act(item);
      done[index] = one;
      const settled = one.catch(() => undefined);
      await (patienceMs === undefined
        ? settled
        : Promise.race([settled, setTimeout(patienceMs, null, { ref: false })]));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, goOn));
  return await Promise.allSettled(done);
}
