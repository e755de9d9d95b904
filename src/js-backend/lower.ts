import { isDeepStrictEqual } from 'node:util';
import type { BackendInput, LowerBackend } from '../../backends/interface.js';
import type { BackendContext, BackendInstance } from './define.js';
import { loadBackend, openInstance } from './load.js';
import { nativeInstance } from './native-instance.js';

/** The place in `lower` of what is asked for and was not given before, which is then in `given`; -1: there is none. */
export function takeLower(lower: readonly LowerBackend[], asked: BackendInput, given: Set<number>): number {
  const place = lower.findIndex((one, index) => !given.has(index) && isDeepStrictEqual(one.asked, asked));
  if (place >= 0) given.add(place);
  return place;
}

/** A lower backend as the supervisor opened it. */
export function asAsked(backend: BackendInput): BackendInput {
  return JSON.parse(JSON.stringify(backend)) as BackendInput;
}

/** An instance of the backend at `place`, whose `files` these are, for the one that is above it. */
export async function lowerInstance(
  { store }: LowerBackend,
  files: readonly number[],
  place: number,
  above: BackendContext,
): Promise<BackendInstance> {
  if (store.kind === 'native') return nativeInstance(store, files);
  return await openInstance(await loadBackend(store.path), store.options, {
    ...above,
    // What two of them call the same is not the same.
    sharedMemory: (name, size) => above.sharedMemory(`${place + 1}.${name}`, size),
  });
}
