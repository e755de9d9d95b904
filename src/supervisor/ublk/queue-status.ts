import type { OperationStatus, QueueStatus } from '../../api/status.js';
import type { SharedOperation, SharedPages } from '../../native/addon/shared-pages.js';
import type { Generation, GrantedDevice } from './kernel.js';

/** What `status` says of the queues of a device, as its shared pages have it. */
export function queueStatus(
  pages: SharedPages,
  { queues, depth }: Pick<GrantedDevice, 'queues' | 'depth'>,
  generation: Generation | null,
): QueueStatus[] {
  return Array.from({ length: queues }, (_, index) => {
    const { inflight, operations } = pages.readQueue(index);
    const operation = (kind: number): OperationStatus => operationStatus(operations[kind]);
    return {
      index,
      pid: generation && !generation.exited.aborted ? (generation.pids[index] ?? null) : null,
      depth,
      inflight,
      read: operation(0),
      write: operation(1),
      flush: operation(2),
      discard: operation(3),
      writeZeroes: operation(4),
    };
  });
}

function operationStatus(operation: SharedOperation | undefined): OperationStatus {
  if (!operation) throw new TypeError('the shared page lacks an operation');
  const { count, bytes, errors, p50ns, p99ns } = operation;
  return { count, bytes, errors, p50us: Math.round(p50ns / 100) / 10, p99us: Math.round(p99ns / 100) / 10 };
}
