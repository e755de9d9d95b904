import { Turns } from './turns.js';

/**
 * Does the same for each item, in order, and a few at a time as `Turns` has it. Resolves when all are done, with how, item
 * by item.
 */
export async function fewAtOnce<Item, Result>(
  items: readonly Item[],
  act: (item: Item) => Promise<Result>,
  patienceMs?: number,
): Promise<readonly PromiseSettledResult<Result>[]> {
  const turns = new Turns(patienceMs);
  const done = items.map(async (item) => {
    const turn = turns.take();
    await turn.begun;
    return act(item).finally(turn.end);
  });
  return Promise.allSettled(done);
}
