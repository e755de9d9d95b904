import { resolve } from 'node:path';
import { BlockDisk } from '../js-backend/conformance/block-disk.js';
import { blockDeviceChecks } from '../js-backend/conformance/checks.js';
import { runChecks, type CheckResult } from '../js-backend/conformance/run.js';
import { SupervisorError } from '../errors.js';
import { createLogger } from '../log/logger.js';
import { withSupervisor } from '../supervisor/run.js';

/** A recovery boots node, which takes many seconds on a busy emulated machine. */
const DEADLINE_MS = 60_000;
/** Sequences of random operations. Fewer than without a kernel: a discard takes a process. */
const RUNS = 10;

/**
 * Serves the backend from this process and hands what the checks find to `report`. Rejects, with nothing left behind,
 * when there is no ublk, or on SIGINT or SIGTERM.
 */
export async function checkOnDevice(
  module: string,
  options: Readonly<Record<string, unknown>>,
  seed = Math.floor(Math.random() * 2 ** 31),
  report: (results: AsyncIterable<CheckResult>) => Promise<void>,
): Promise<void> {
  const interrupt = new AbortController();
  const onSignal = (signal: NodeJS.Signals): void =>
    interrupt.abort(new SupervisorError(`testing ${module} failed: ended by ${signal}`, { code: 'INTERRUPTED' }));
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  try {
    await withSupervisor({ log: createLogger('error') }, async (supervisor) => {
      const open = (): Promise<BlockDisk> =>
        BlockDisk.open({
          ...{ module: resolve(module), options, deadlineMs: DEADLINE_MS },
          ...{ supervisor, interrupt: interrupt.signal },
        });
      await report(until(interrupt.signal, runChecks(open, blockDeviceChecks, { seed, runs: RUNS })));
    });
  } catch (error) {
    if (!(error instanceof SupervisorError && error.code === 'NO_UBLK')) throw error;
    const { message, code } = error;
    throw new SupervisorError(`${message}; or use --vm, in a checkout of ublk-supervisor`, { code, cause: error });
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

/** Passes results on, and rejects with the signal's reason instead of those that it spoilt. */
async function* until<Value>(signal: AbortSignal, results: AsyncIterable<Value>): AsyncGenerator<Value, void> {
  for await (const result of results) {
    signal.throwIfAborted();
    yield result;
  }
}
