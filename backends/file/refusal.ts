import type { Stats } from 'node:fs';
import type { ErrorCode } from '../../src/error-codes.js';
import { SupervisorError, errnoOf, reasonOf } from '../../src/errors.js';
import { LARGEST_DEVICE, formatSize } from '../../src/units.js';
import { describeBlockDevice, type BlockDevice } from './block-device.js';

const EBUSY = 16;

/** Gives what the system refused the one form of errors. */
export async function named<Result>(operation: string, path: string, action: () => Promise<Result>): Promise<Result> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof SupervisorError && error.errno === undefined) throw error;
    const inUse = errnoOf(error) === EBUSY;
    const reason = inUse ? 'it is mounted or in use (EBUSY); unmount or close it' : reasonOf(error);
    throw refusal(path, reason, operation, inUse ? 'IN_USE' : 'BACKEND', error);
  }
}

export function refusal(
  path: string,
  reason: string,
  operation = 'opening',
  code: ErrorCode = 'BACKEND',
  cause?: unknown,
): SupervisorError {
  return new SupervisorError(`${operation} ${path} failed: ${reason}`, { code, errno: errnoOf(cause), cause });
}

/** Throws unless a file may be made at the path, which names nothing yet. */
export function assertMayBeMade(
  path: string,
  { size, readOnly }: { size?: number | undefined; readOnly: boolean },
): void {
  if (size === undefined || readOnly) throw refusal(path, 'there is no such file; give a size to create it');
}

/** null: it is a file. Throws when it is neither that nor a block device, or a device of ublk. */
export async function blockDeviceOf(path: string, status: Stats): Promise<BlockDevice | null> {
  if (status.isFile()) return null;
  if (!status.isBlockDevice()) throw refusal(path, `it is ${kindOf(status)}; name a file or a block device`);
  const device = await describeBlockDevice(status.rdev);
  if (!device.name.startsWith('ublkb')) return device;
  throw refusal(path, 'it is a ublk device, and two that wait for each other never end; name what is below it');
}

/** `present`: bytes that it has; `wanted`: those that are configured. */
export function assertOfSize(path: string, present: number, wanted: number | undefined): void {
  if (present > LARGEST_DEVICE) {
    throw refusal(
      path,
      `it has ${formatSize(present)}, more than the ${formatSize(LARGEST_DEVICE)} of the largest device`,
    );
  }
  if (present === (wanted ?? present)) return;
  throw refusal(path, `it has ${present} bytes, not the ${String(wanted)} configured; change one of them`);
}

export function assertHoldsABlock(path: string, present: number, blockSize: number): void {
  if (present >= blockSize) return;
  throw refusal(path, `it has ${present} bytes, which is less than one block of ${blockSize}`);
}

function kindOf(status: Stats): string {
  if (status.isDirectory()) return 'a directory';
  if (status.isFIFO()) return 'a FIFO';
  if (status.isSocket()) return 'a socket';
  return 'a character device';
}
