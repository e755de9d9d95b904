import { Operation } from '../native/request.js';
import type { RequestIdentity } from '../native/request.js';
import type { OperationName, RequestStatus } from './status.js';

/** The names of operations by `UBLK_IO_OP_*`. */
const names: Readonly<Record<number, OperationName>> = Object.fromEntries(
  (Object.entries(Operation) as [OperationName, number][]).map(([name, operation]) => [operation, name]),
);

export const isOperation = (operation: number): boolean => operation in names;

/** It has no place, so that one cannot be told from another. */
export function isFlush({ operation }: RequestIdentity): boolean {
  return names[operation] === 'flush';
}

/** In the order of the shared page's counters. */
export const operationNames: readonly OperationName[] = Object.values(names);

export function operationNameOf(operation: number): string {
  return names[operation] ?? `operation ${operation}`;
}

/** A request as `status` shows it. */
export function requestStatus({ operation, startSector, sectors }: RequestIdentity): RequestStatus {
  return { operation: operationNameOf(operation), sector: startSector, sectors };
}

/** `read of 8 sectors at 4096`; a sector has 512 bytes. */
export function describeRequest({ operation, sector, sectors }: RequestStatus): string {
  if (operation === 'flush') return operation;
  return `${operation === 'writeZeroes' ? 'write zeroes' : operation} of ${sectors} sectors at ${sector}`;
}
