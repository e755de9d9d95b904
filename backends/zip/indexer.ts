import { loadAddon, translated } from '../../src/native/addon/load.js';

/** An entry of a zip archive, as the archive describes it. */
export interface ZipEntryData {
  /** Where its data begins in the archive, in bytes. */
  readonly dataOffset: number;
  readonly compressedBytes: number;
  readonly bytes: number;
  /** CRC-32 of the data. */
  readonly crc: number;
  readonly deflated: boolean;
}

interface ZipIndexer {
  /** Resolves with true at the end. */
  step(): Promise<boolean>;
  finish(): number;
}

interface Addon {
  ZipIndexer: new (
    archive: number,
    dataOffset: number,
    compressedBytes: number,
    bytes: number,
    crc: number,
    deflated: boolean,
  ) => ZipIndexer;
}

const addon = (): Addon => loadAddon() as Addon;

/**
 * Reads an entry of the archive through once. Resolves with the fd of the index that the queue processes need to serve
 * it; the caller closes it. Rejects with an Error whose message says what is wrong with the entry: `its CRC-32 is ...`.
 */
export async function indexZipEntry(archive: number, entry: ZipEntryData): Promise<number> {
  const { dataOffset, compressedBytes, bytes, crc, deflated } = entry;
  const indexer = translated(
    () => new (addon().ZipIndexer)(archive, dataOffset, compressedBytes, bytes, crc, deflated),
  );
  // In steps, so that others get their turn on libuv's few threads.
  while (!(await indexer.step()));
  return translated(() => indexer.finish());
}
