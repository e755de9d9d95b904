import type { MarkedRequest } from '../../native/addon/shared-pages.js';
import type { Death, Remains } from '../ublk/kernel.js';
import { describeRequest, operationNames, requestStatus } from '../../api/operations.js';
import type { CrashCause, CrashStatus, ExitStatus, QuarantinedRequestStatus } from '../../api/status.js';

/** A queue may hold 4096 requests, and a person reads a few. */
const MOST_REQUESTS = 32;

export interface CrashContext {
  readonly device: string;
  readonly backend: string;
  readonly convicted: readonly MarkedRequest[];
  readonly oomKills: number | null;
}

/** What is known at the death; the pause and the file come later. */
export function crashReport({ generation, exit, remains }: Death, context: CrashContext): CrashStatus {
  const { device, backend, convicted, oomKills } = context;
  const { phase, outstanding, answered, lastAnswerMs } = remains;
  const oldest = [...outstanding].sort((one, other) => other.ageMs - one.ageMs).slice(0, MOST_REQUESTS);
  return {
    device,
    backend,
    generation,
    cause: causeOf(exit, remains),
    exit,
    phase,
    inflight: outstanding.length,
    requests: oldest.map((request) => ({
      queue: request.queue,
      ...requestStatus(request),
      ageMs: rounded(request.ageMs),
    })),
    answered,
    lastAnswerMs: lastAnswerMs === null ? null : rounded(lastAnswerMs),
    quarantined: convicted.map(quarantinedStatus),
    oomKills,
    pauseMs: null,
    file: null,
  };
}

/**
 * The kernel's OOM killer spares a queue process (its oom_score_adj is -1000), so a SIGKILL that is not ours is somebody's
 * decision.
 */
export function causeOf({ code, signal, reason }: ExitStatus, { hung }: Pick<Remains, 'hung'>): CrashCause {
  if (hung !== null) return 'hang';
  if (signal !== null) return signal === 'SIGKILL' ? 'killed' : 'signal';
  if (code === null) return 'unknown';
  return reason === null ? 'exit' : 'error';
}

/** One line for the log, which has the exit itself already. */
export function describeCrash({ device, generation, inflight, requests, answered, lastAnswerMs }: CrashStatus): string {
  const count = operationNames.reduce((sum, name) => sum + answered[name], 0);
  const [oldest] = requests;
  const last = lastAnswerMs === null ? '' : `, the last ${Math.round(lastAnswerMs)} ms before`;
  const outstanding =
    oldest === undefined
      ? 'no request'
      : `${inflight} ${inflight === 1 ? 'request' : 'requests'}, the oldest a ${describeRequest(oldest)} for ${Math.round(oldest.ageMs)} ms`;
  return (
    `generation ${generation} of device ${device} had answered ${count} requests${last}, ` +
    `and died with ${outstanding}`
  );
}

export function quarantinedStatus(request: MarkedRequest): QuarantinedRequestStatus {
  return { ...requestStatus(request), crashes: request.crashes };
}

/** `read of 8 sectors at 4096, which caused 3 crashes`. */
export function describeQuarantined(request: MarkedRequest): string {
  return `${describeRequest(requestStatus(request))}, which caused ${request.crashes} crashes`;
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}
