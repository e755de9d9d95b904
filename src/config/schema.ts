import { dirname, normalize, resolve } from 'node:path';
import * as z from 'zod';
import { backendOptions, dataPathsOf, type BackendOptions } from '../../backends/registry.js';
import { parseJson } from './json.js';
import { oneOf, show, validate } from '../problems.js';
import type { Config, DeviceConfig } from './types.js';
import { faultRules } from '../faults/rule.js';
import { parseDuration } from '../units.js';
import { userOf } from '../native/addon/accounts.js';

const MOST_DEVICES = 1024;
const LONGEST_WINDOW_MS = 24 * 3600e3;

function integer(min: number, max: number): z.ZodInt {
  const error = ({ input }: { readonly input?: unknown }): string =>
    `expected ${Number.isInteger(input) ? '' : 'a whole number from '}${min} to ${max}, got ${show(input)}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
}

/** Safe as a file name and in a URL, a log line and a shell word. */
export const deviceName = z.string().regex(/^[a-z0-9][a-z0-9_.-]{0,62}$/, {
  error: ({ input }) =>
    `expected 1 to 63 of a-z, 0-9, "_", "." and "-", starting with a letter or digit, got ${show(input)}`,
});

/** `least`: a duration, too. */
const duration = (least: string): z.ZodPipe<z.ZodString, z.ZodTransform<number, string>> => {
  const expected = (given: unknown): string =>
    `expected ${least} to 24h, such as 500ms, 60s, 5min or 1h, got ${show(given)}`;
  return z.string({ error: ({ input }) => expected(input) }).transform((text, context) => {
    const milliseconds = parseDuration(text) ?? -1;
    if (milliseconds >= (parseDuration(least) ?? 0) && milliseconds <= LONGEST_WINDOW_MS) return milliseconds;
    context.addIssue({ code: 'custom', message: expected(text) });
    return z.NEVER;
  });
};

const LARGEST_ID = 2 ** 32 - 2;

/** What passwd(5) can have: libc would end a name at a NUL, and look up another. */
const USER_NAME = /^[!-9;-~]{1,256}$/;

/** A uid without a name is its own group. */
const user = z.union([z.string(), integer(0, LARGEST_ID)]).transform((nameOrUid, context) => {
  const found = typeof nameOrUid === 'number' || USER_NAME.test(nameOrUid) ? userOf(nameOrUid) : null;
  if (found) return found;
  if (typeof nameOrUid === 'number') return { uid: nameOrUid, gid: nameOrUid };
  context.addIssue({ code: 'custom', message: `expected a user of this machine, got ${show(nameOrUid)}` });
  return z.NEVER;
});

const recovery = z.strictObject({
  mode: z
    .enum(['reissue', 'fail-inflight', 'fail-io'])
    .default('reissue')
    .describe(
      'what happens to requests when a queue process dies. reissue: the next process gets them again and nobody sees ' +
        'an error. fail-inflight: those in flight fail, new ones wait. fail-io: both fail (kernel 6.13)',
    ),
  auto: z.boolean().default(true).describe('false leaves a dead device to `ublk-supervisor recover`'),
  maxRestarts: integer(0, 10_000)
    .default(10)
    .describe('at most this many restarts within the window; 0: never restart'),
  window: duration('1ms').prefault('60s').describe('a duration: 500ms, 60s, 5min, 1h'),
  poisonAfter: integer(0, 1000)
    .default(3)
    .describe('a request that so many crashes in a row have in common is answered with EIO from then on; 0: never'),
  onGiveUp: z
    .enum(['park', 'stop'])
    .default('park')
    .describe('after maxRestarts. park: I/O waits for `recover`. stop: the device goes away and I/O fails'),
});

const device = z
  .strictObject({
    name: deviceName.describe('what commands and logs call the device'),
    id: integer(0, 2 ** 20 - 1)
      .optional()
      .describe('N of /dev/ublkbN; left out, the kernel chooses'),
    queues: integer(1, 128).default(1).describe('hardware queues, one process each; the kernel allows one per CPU'),
    depth: integer(1, 4096).default(128).describe('requests per queue that may be outstanding'),
    blockSize: z
      .literal([512, 1024, 2048, 4096])
      .optional()
      .describe('logical block size in bytes; left out, the one that the data was made for; 4096 for new data'),
    readOnly: z.boolean().default(false),
    dataPath: z
      .enum(['auto', 'copy', 'user-copy', 'zero-copy'])
      .default('auto')
      .describe('how request data reaches the queue process; auto: what suits the backend best'),
    partitions: z
      .boolean()
      .default(false)
      .describe('whether partitions of the device are devices too, /dev/ublkbNpM; kept as its partition table is'),
    user: user.optional().describe('user name or uid that the queue processes run as; by default as the supervisor'),
    backend: backendOptions.describe('what stores the data'),
    directory: z
      .string()
      .regex(/^\//, { error: 'expected an absolute path' })
      .optional()
      .describe('what paths of the backend are relative to; left out, the directory of the configuration'),
    // A process gives no sign of life more often than that.
    requestTimeout: duration('100ms')
      .prefault('60s')
      .describe('queue processes that give no sign of life for so long are replaced; json(5) says what is one'),
    coreDump: z
      .boolean()
      .default(false)
      .describe('whether a queue process that crashes may leave a core dump, with the data of its requests in it'),
    recovery: recovery.prefault({}),
    faults: faultRules
      .optional()
      .describe('what is to go wrong, for tests; [] allows `fault add`, left out nothing does'),
  })
  .superRefine(({ backend, dataPath }, context) => {
    const choices = ['auto', ...dataPathsOf(backend)];
    if (choices.includes(dataPath)) return;
    const name = backend.type === 'module' ? 'a backend in JavaScript' : `backend ${backend.type}`;
    const message = `expected ${oneOf(choices)} for ${name}, got ${show(dataPath)}`;
    context.addIssue({ code: 'custom', path: ['dataPath'], message });
  })
  .superRefine(({ faults, dataPath }, context) => {
    if (faults === undefined || dataPath === 'auto' || dataPath === 'copy') return;
    const message = `expected auto or copy for a device with faults, got ${show(dataPath)}`;
    context.addIssue({ code: 'custom', path: ['dataPath'], message });
  })
  .superRefine(({ backend, blockSize }, context) => {
    if (blockSize === undefined || !('size' in backend) || (backend.size ?? 0) % blockSize === 0) return;
    context.addIssue({
      code: 'custom',
      path: ['backend', 'size'],
      message: `expected a multiple of blockSize ${blockSize}, got ${String(backend.size)}`,
    });
  })
  .transform(({ id, blockSize, user, faults, requestTimeout, recovery: { window, ...rest }, ...others }) => {
    return {
      ...others,
      id,
      blockSize,
      user,
      faults,
      requestTimeoutMs: requestTimeout,
      recovery: { ...rest, windowMs: window },
    };
  });

const config = z
  .strictObject({
    $schema: z.string().optional().describe('where an editor finds this schema; not read by ublk-supervisor'),
    devices: z.array(device).max(MOST_DEVICES, {
      error: ({ input }) => `expected at most ${MOST_DEVICES} devices, got ${(input as readonly unknown[]).length}`,
    }),
  })
  .superRefine(({ devices }, context) => refuseTwins(devices, context));

/** A device as a person or a program writes it. */
export type DeviceInput = z.input<typeof device>;

/** Checks a configuration that is no text; `source` names it in errors, paths in it are relative to `directory`. */
export function checkConfig(input: unknown, source: string, directory: string): Config {
  const { devices } = validate(config, input, source);
  return { devices: devices.map((one) => withAbsolutePaths(one, directory)) };
}

/** Checks the `backend` of a device by itself; paths in it are relative to `directory`. Throws `CONFIG`. */
export function checkBackend(input: unknown, source: string, directory: string): BackendOptions {
  return absolute(validate(backendOptions, input, source), directory);
}

/**
 * The configuration in `text`; `source`, its path, names it in errors and is what paths in it are relative to. Rejects
 * with code `CONFIG`, one line per problem.
 */
export function parseConfig(text: string, source: string): Config {
  return checkConfig(parseJson(text, source), source, dirname(source));
}

/**
 * One device, as in the configuration's `devices`; paths in it are relative to the working directory. Rejects with code
 * `CONFIG`, one line per problem.
 */
export function parseDevice(input: unknown): DeviceConfig {
  return withAbsolutePaths(validate(device, input, 'device'), process.cwd());
}

/** The inverse of `parseDevice`. */
export function deviceInput(config: DeviceConfig): object {
  const { backend, user, requestTimeoutMs, recovery, ...rest } = config;
  const { windowMs, ...policy } = recovery;
  return {
    ...rest,
    user: user?.uid,
    ...(backend.type === 'module'
      ? { directory: backend.directory, backend: { ...backend.options, type: backend.path } }
      : { backend }),
    requestTimeout: `${requestTimeoutMs}ms`,
    recovery: { ...policy, window: `${windowMs}ms` },
  };
}

function withAbsolutePaths(
  { directory, backend, ...config }: z.output<typeof device>,
  directoryOfAll: string,
): DeviceConfig {
  return { ...config, backend: absolute(backend, resolve(directory ?? directoryOfAll)) };
}

function absolute(backend: BackendOptions, directory: string): BackendOptions {
  if (!('path' in backend)) return backend;
  const path = resolve(directory, backend.path);
  return backend.type === 'module' ? { ...backend, path, directory } : { ...backend, path };
}

/** The JSON Schema of what a person writes, for editors. */
export function configJsonSchema(): object {
  const schema = z.toJSONSchema(config, { io: 'input' });
  return { ...schema, title: 'ublk-supervisor configuration' };
}

function refuseTwins(devices: readonly DeviceConfig[], context: z.RefinementCtx): void {
  const singular = {
    name: ({ name }: DeviceConfig) => name,
    id: ({ id }: DeviceConfig) => id,
    'backend.path': ({ backend }: DeviceConfig) => (backend.type === 'file' ? normalize(backend.path) : undefined),
  };
  for (const [key, valueOf] of Object.entries(singular)) {
    const first = new Map<unknown, number>();
    for (const [index, device] of devices.entries()) {
      const value = valueOf(device);
      if (value === undefined) continue;
      const earlier = first.get(value);
      if (earlier === undefined) first.set(value, index);
      else {
        context.addIssue({
          code: 'custom',
          path: ['devices', index, ...key.split('.')],
          message: `${show(value)} is taken by devices[${earlier}]; expected a different one for each device`,
        });
      }
    }
  }
}
