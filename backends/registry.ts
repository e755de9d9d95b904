import { z } from 'zod';
import type { NativeBackend, OpenBackend, OpenContext } from './interface.js';
import { nullBackend, nullOptions } from './null/null.js';
import { ramBackend, ramOptions } from './ram/ram.js';

/** The one place that names backends; its C++ counterpart is registry.cpp. */
export const backendOptions = z.discriminatedUnion('type', [nullOptions, ramOptions]);

export type BackendOptions = z.infer<typeof backendOptions>;

const backends = { null: nullBackend, ram: ramBackend } satisfies {
  [Type in BackendOptions['type']]: NativeBackend<Extract<BackendOptions, { type: Type }>>;
};

export const backendTypes = Object.keys(backends) as readonly BackendOptions['type'][];

/** Opens the backend that `options.type` names. */
export function openBackend(options: BackendOptions, context: OpenContext): Promise<OpenBackend> {
  const backend: NativeBackend<BackendOptions> = backends[options.type];
  return backend.open(options, context);
}
