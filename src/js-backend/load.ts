import { execFile } from 'node:child_process';
import { extname } from 'node:path';
import { pathToFileURL } from 'node:url';
import { validate } from '../problems.js';
import { SupervisorError, messageOf } from '../errors.js';
import { LARGEST_DEVICE } from '../units.js';
import type { BackendContext, BackendDefinition, BackendInstance } from './define.js';

/** What a device announces for an instance: nothing that the instance lacks. */
export interface Announced {
  /** Bytes. */
  readonly size: number;
  /** null: what the configuration says. */
  readonly blockSize: number | null;
  /** null: any number. */
  readonly maxQueues: number | null;
  readonly readOnly: boolean;
  readonly rotational: boolean;
  readonly idempotentWrites: boolean;
  readonly flush: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
}

type Options = Readonly<Record<string, unknown>>;

/** Node 22.18 and later; its types are those of Node 20. */
export const stripsTypes = Boolean((process.features as { readonly typescript?: unknown }).typescript);

const CHECK_DEADLINE_MS = 10_000;
const SMALLEST_DEVICE = 4096;
const BLOCK_SIZES: readonly unknown[] = [512, 1024, 2048, 4096];
const LARGEST_SHARED_MEMORY = 2 ** 40;

/** Imports a backend's module. Rejects with `BACKEND` and what its author has to change. */
export async function loadBackend(path: string): Promise<BackendDefinition> {
  if (/^\.[cm]?ts$/.test(extname(path)) && !stripsTypes) {
    throw refused(
      `loading backend ${path} failed: Node ${process.version} does not run TypeScript; use Node 22.18 or later, or compile it`,
    );
  }
  let module: { readonly default?: unknown };
  try {
    module = (await import(pathToFileURL(path).href)) as { readonly default?: unknown };
  } catch (error) {
    const place = error instanceof SyntaxError ? await placeOfSyntaxError(path) : '';
    throw refused(`loading backend ${path} failed: ${messageOf(error)}${place}`, error);
  }
  const definition = module.default as Partial<BackendDefinition> | null | undefined;
  if (typeof definition?.open !== 'function' || typeof definition.name !== 'string') {
    throw refused(
      `loading backend ${path} failed: its default export is no backend; export default defineBackend({ name, open })`,
    );
  }
  const { maxQueues } = definition;
  if (maxQueues !== undefined && (!Number.isSafeInteger(maxQueues) || maxQueues < 1)) {
    throw refused(`loading backend ${path} failed: its maxQueues is ${maxQueues}; expected 1 or more, or nothing`);
  }
  return definition as BackendDefinition;
}

/** V8 does not say it of a module that is imported. Empty where it is in another one that this one imports. */
function placeOfSyntaxError(path: string): Promise<string> {
  const options = { env: {}, timeout: CHECK_DEADLINE_MS };
  return new Promise((resolve) => {
    execFile(process.execPath, ['--check', path], options, (_, __, stderr) => {
      const [place = '', code = ''] = stderr.split('\n');
      const line = /:([0-9]+)$/.exec(place)?.[1];
      resolve(line === undefined ? '' : `; line ${line}: ${code.trim()}`);
    });
  });
}

/** Checks a backend's part of the configuration. Throws `CONFIG` or `BACKEND`. */
export function checkOptions({ name, options: schema }: BackendDefinition, options: Options): unknown {
  if (!schema && Object.keys(options).length > 0) {
    throw refused(`backend ${name}: unknown key ${Object.keys(options).join(', ')}; it has no options`);
  }
  return schema ? validate(schema, options, `backend ${name}`) : options;
}

/** Checks the options and opens an instance. Rejects with `CONFIG`, `BACKEND` or whatever `open` threw. */
export async function openInstance(
  definition: BackendDefinition,
  options: Options,
  context: BackendContext,
): Promise<BackendInstance> {
  const instance: unknown = await definition.open(checkOptions(definition, options), context);
  const fault = faultOf(instance);
  if (fault !== undefined) throw refused(`opening backend ${definition.name} failed: open() returned ${fault}`);
  return instance as BackendInstance;
}

export function announcedBy(definition: BackendDefinition, instance: BackendInstance): Announced {
  return {
    size: instance.size,
    blockSize: instance.blockSize ?? null,
    maxQueues: definition.maxQueues ?? null,
    readOnly: instance.readOnly === true || instance.write === undefined,
    rotational: instance.rotational === true,
    idempotentWrites: instance.idempotentWrites !== false,
    flush: instance.flush !== undefined,
    discard: instance.discard !== undefined,
    writeZeroes: instance.writeZeroes !== undefined,
  };
}

/** Checks what a backend asked `sharedMemory` for. */
export function assertSharedMemory(name: string, size: number): void {
  if (!/^[a-z0-9][a-z0-9_.-]{0,62}$/.test(name)) {
    throw new RangeError(`sharedMemory: expected a name of 1 to 63 of a-z, 0-9, "_", "." and "-", got ${name}`);
  }
  if (!Number.isSafeInteger(size) || size < 1 || size > LARGEST_SHARED_MEMORY) {
    throw new RangeError(`sharedMemory ${name}: expected a size from 1 to ${LARGEST_SHARED_MEMORY} bytes, got ${size}`);
  }
}

function faultOf(instance: unknown): string | undefined {
  if (typeof instance !== 'object' || instance === null) return `${String(instance)}; expected { size, read, ... }`;
  const given = instance as Readonly<Record<string, unknown>>;
  const { size, blockSize = 512 } = given;
  if (!BLOCK_SIZES.includes(blockSize)) {
    return `blockSize ${String(blockSize)}; expected ${BLOCK_SIZES.join(', ')} or nothing`;
  }
  const fits = Number.isInteger(size) && Number(size) >= SMALLEST_DEVICE && Number(size) <= LARGEST_DEVICE;
  if (!fits || Number(size) % Number(blockSize) !== 0) {
    const range = `from ${SMALLEST_DEVICE} to ${LARGEST_DEVICE} bytes`;
    return `size ${String(size)}; expected a multiple of ${String(blockSize)} ${range}`;
  }
  if (typeof given.read !== 'function') return 'no read(buffer, offset)';
  const odd = ['write', 'flush', 'discard', 'writeZeroes', 'close'].find(
    (method) => given[method] !== undefined && typeof given[method] !== 'function',
  );
  return odd === undefined ? undefined : `${odd} that is no function`;
}

function refused(message: string, cause?: unknown): SupervisorError {
  return new SupervisorError(message, { code: 'BACKEND', cause });
}
