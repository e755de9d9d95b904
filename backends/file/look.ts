import { basename } from 'node:path';
import { locate } from './locate.js';
import { assertHoldsABlock, assertMayBeMade, assertOfSize, blockDeviceOf, named } from './refusal.js';
import type { StoreOptions } from './store.js';

const SECTOR = 512;

/**
 * Rejects as `openStore` would, as far as names and stat(2) tell; opens and makes nothing. Resolves with what no other device
 * may have.
 */
export function lookAtStore(
  options: Pick<StoreOptions, 'path' | 'size' | 'readOnly'>,
  blockSize: number | null,
): Promise<string> {
  const { path, size, readOnly } = options;
  return named('opening', path, async () => {
    await using place = await locate(path);
    if (place.found === null) {
      assertMayBeMade(path, options);
      const { dev, ino } = await place.directory.stat();
      return `${basename(place.path)} in inode ${ino} of ${dev}`;
    }
    const status = await place.found.stat();
    const device = await blockDeviceOf(path, status);
    const present = device?.size ?? status.size;
    const isMade = device === null && present === 0 && size !== undefined && !readOnly;
    if (!isMade) {
      assertOfSize(path, present, size);
      assertHoldsABlock(path, present, blockSize ?? SECTOR);
    }
    return device === null ? `inode ${status.ino} of ${status.dev}` : device.name;
  });
}
