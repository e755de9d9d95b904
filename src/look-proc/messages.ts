import type { LookContext } from '../../backends/interface.js';
import type { BackendOptions } from '../../backends/registry.js';

/** What `check` and the process that looks at stores say to each other, as JSON. */

export interface LookRequest {
  readonly options: BackendOptions;
  readonly context: LookContext;
}

export type LookAnswer =
  /** It looks, from now on. */
  | { readonly index: null }
  /** `index`: of the request. `error`: why it cannot be opened; else `identity` is as `Backend.look` has it. */
  | { readonly index: number; readonly error: string | null; readonly identity: string | null };
