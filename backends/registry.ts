import * as z from 'zod';
import { fileBackend, fileOptions } from './file/file.js';
import type { Backend, DataPath, Loaded, LookContext, OpenBackend, OpenContext } from './interface.js';
import { moduleBackend, moduleOptions } from './module/module.js';
import { nullBackend, nullOptions } from './null/null.js';
import { ramBackend, ramOptions } from './ram/ram.js';
import { zipBackend, zipOptions } from './zip/zip.js';

/** The one place that names backends; its C++ counterpart is registry.cpp. */
const namedOptions = z.discriminatedUnion('type', [fileOptions, nullOptions, ramOptions, zipOptions]);

export const backendOptions = z.union([namedOptions, moduleOptions]);

export type BackendOptions = z.infer<typeof backendOptions>;

const backends = {
  file: fileBackend,
  null: nullBackend,
  ram: ramBackend,
  zip: zipBackend,
  module: moduleBackend,
} satisfies {
  [Type in BackendOptions['type']]: Backend<Extract<BackendOptions, { type: Type }>>;
};

/** Whether opening the backend may hang, and so happens in the store process. */
export function mayHang(options: BackendOptions): boolean {
  const backend: Backend<BackendOptions> = backends[options.type];
  return backend.mayHang === true;
}

/** Those that the backend which `options.type` names can have. */
export function dataPathsOf(options: BackendOptions): readonly DataPath[] {
  const backend: Backend<BackendOptions> = backends[options.type];
  return backend.dataPaths;
}

/** Whether `lookAtBackend` has anything to look at. */
export function canLook(options: BackendOptions): boolean {
  const backend: Backend<BackendOptions> = backends[options.type];
  return backend.look !== undefined;
}

/** As `Backend.look`. */
export async function lookAtBackend(options: BackendOptions, context: LookContext): Promise<string | null> {
  const backend: Backend<BackendOptions> = backends[options.type];
  return (await backend.look?.(options, context)) ?? null;
}

/** As `Backend.tryLoading`; null: there is nothing to load. */
export async function tryLoadingBackend(
  options: BackendOptions,
  context: Pick<OpenContext, 'device' | 'user'>,
): Promise<Loaded | null> {
  const backend: Backend<BackendOptions> = backends[options.type];
  return (await backend.tryLoading?.(options, context)) ?? null;
}

/** Opens the backend that `options.type` names. */
export function openBackend(options: BackendOptions, context: OpenContext): Promise<OpenBackend> {
  const backend: Backend<BackendOptions> = backends[options.type];
  return backend.open(options, context);
}
