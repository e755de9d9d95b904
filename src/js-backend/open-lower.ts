import type { OpenBackend, OpenContext, OpenLower } from '../../backends/interface.js';
import type { BackendOptions } from '../../backends/registry.js';
import { checkBackend } from '../config/schema.js';

/** How what a backend asks for is found and opened, where backends are opened by `open`. */
export function lowerOpener(open: (options: BackendOptions, context: OpenContext) => Promise<OpenBackend>): OpenLower {
  return async (asked, directory, context) => {
    const options = checkBackend(asked, 'the backend that is asked for', directory);
    if (options.type === 'module') return { kind: 'module', path: options.path, options: options.options };
    const blockSize = context.inherited?.blockSize ?? null;
    const backend = await open(options, { ...context, blockSize, readOnly: false });
    return { kind: 'native', name: options.type, backend };
  };
}
