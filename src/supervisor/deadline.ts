import { SupervisorError } from '../errors.js';

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
  let timer: NodeJS.Timeout | undefined;
  let onAbort = (): void => undefined;
  const ended = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const reason = `it takes longer than ${String(ms / 1000)} s`;
      reject(new SupervisorError(`${what} failed: ${reason}`, { code: 'TIMEOUT' }));
    }, ms);
    onAbort = () => {
      reject(new SupervisorError(`${what} failed: it is no longer wanted`, { code: 'ABORTED' }));
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    if (signal?.aborted === true) onAbort();
  });
  try {
    return await Promise.race([work, ended]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
  }
}
