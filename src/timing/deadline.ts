import { SupervisorError } from '../errors.js';

/**
 * Calls `expired` when `ms` have passed, and what had arrived by then was read: a loop that was busy runs its timers first,
 * and would take for silent who answered in time. Returns what calls it off.
 */
export function afterDeadline(ms: number, expired: () => void): () => void {
  let read: NodeJS.Immediate | undefined;
  const timer = setTimeout(() => {
    read = setImmediate(expired);
  }, ms);
  return () => {
    clearTimeout(timer);
    clearImmediate(read);
  };
}

/**
 * Settles as `work` does; rejects with `TIMEOUT` when that takes longer than `ms`, with `ABORTED` when `signal` fires. The
 * work goes on: what waits in a file system cannot be called off.
 */
export async function within<Result>(
  what: string,
  ms: number,
  work: Promise<Result>,
  signal?: AbortSignal,
): Promise<Result> {
  let callOff = (): void => undefined;
  let onAbort = (): void => undefined;
  const ended = new Promise<never>((_, reject) => {
    callOff = afterDeadline(ms, () => {
      const reason = `it takes longer than ${ms / 1000} s`;
      reject(new SupervisorError(`${what} failed: ${reason}`, { code: 'TIMEOUT' }));
    });
    onAbort = () => reject(new SupervisorError(`${what} failed: it is no longer wanted`, { code: 'ABORTED' }));
    signal?.addEventListener('abort', onAbort, { once: true });
    if (signal?.aborted === true) onAbort();
  });
  try {
    return await Promise.race([work, ended]);
  } finally {
    callOff();
    signal?.removeEventListener('abort', onAbort);
  }
}
