/** Random choices of a test, which a run prints as `seed` and `TEST_SEED` repeats as far as timing allows. */

export const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 32);

/** A whole number from 0 to below `limit`. */
export type Random = (limit: number) => number;

/** Always the same numbers for the same seed; mulberry32. */
export function generator(from: number): Random {
  let state = from;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

export const random = generator(seed);
