import { fileURLToPath } from 'node:url';
import type { Report } from './report.js';
import type { Selection } from './selection.js';

export interface Context {
  readonly selection: Selection;
  readonly report: Report;
  /** Aborted when the run is to end early. */
  readonly cancelSignal: AbortSignal;
  readonly stopped: () => boolean;
}

/** The project's directory, which every path here is relative to. */
export const root = fileURLToPath(new URL('../../../', import.meta.url));
