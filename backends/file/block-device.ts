import { readFile, realpath } from 'node:fs/promises';
import { basename } from 'node:path';
import { deviceNumber } from '../../src/device-number.js';

const SECTOR = 512;

/** What sysfs says about a block device; opening it would tell no more and could wait. */
export interface BlockDevice {
  /** `sda1`. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes. */
  readonly logicalBlockSize: number;
  readonly readOnly: boolean;
  readonly canDiscard: boolean;
  readonly rotational: boolean;
}

/** @param rdev as stat(2) gives it */
export async function describeBlockDevice(rdev: number): Promise<BlockDevice> {
  const directory = await realpath(`/sys/dev/block/${deviceNumber(rdev)}`);
  const number = async (name: string): Promise<number> => Number(await readFile(`${directory}/${name}`, 'utf8'));
  // A partition shares the queue of its disk.
  const inQueue = (name: string): Promise<number> => number(`queue/${name}`).catch(() => number(`../queue/${name}`));
  return {
    name: basename(directory),
    size: (await number('size')) * SECTOR,
    logicalBlockSize: await inQueue('logical_block_size'),
    readOnly: (await number('ro')) === 1,
    canDiscard: (await inQueue('discard_max_bytes')) > 0,
    rotational: (await inQueue('rotational')) === 1,
  };
}
