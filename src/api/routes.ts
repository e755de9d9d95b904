import * as z from 'zod';
import { deviceSize } from '../../backends/options.js';
import { parseJson } from '../config/json.js';
import { validate } from '../problems.js';
import { httpStatusOf } from '../error-codes.js';
import { SupervisorError, messageOf } from '../errors.js';
import type { SupervisorApi } from './status.js';
import type { WholeStatus } from './whole-status.js';

export interface ApiRequest {
  readonly method: string;
  /** The request target as sent: path and query. */
  readonly target: string;
  readonly contentType: string | undefined;
  readonly body: string;
}

export interface ApiAnswer {
  readonly status: number;
  /** The document that becomes the JSON of the answer, or JSON that is complete already. */
  readonly body: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  /** An error that is a bug of ours, for the log. */
  readonly unexpected?: unknown;
}

/** A body that is JSON already. */
export class JsonPieces {
  readonly pieces: readonly Buffer[];

  constructor(pieces: readonly Buffer[]) {
    this.pieces = pieces;
  }
}

interface Call {
  readonly wholeStatus: WholeStatus;
  readonly name: string;
  /** Of a thing of the device. */
  readonly id: string;
  readonly query: ReadonlyMap<string, string>;
  readonly body: unknown;
}

interface Route {
  readonly method: string;
  readonly path: RegExp;
  /** The query keys and their values that the route understands. */
  readonly query?: Readonly<Record<string, readonly string[]>>;
  readonly takesBody?: boolean;
  run(api: SupervisorApi, call: Call): ApiAnswer | Promise<ApiAnswer>;
}

const stopRequest = z.strictObject({ force: z.boolean().default(false) }).prefault({});

const resizeRequest = z.strictObject({ size: deviceSize, force: z.boolean().default(false) });
const reloadRequest = z.strictObject({ dryRun: z.boolean().default(false) }).prefault({});

const upgradeRequest = z.strictObject({ self: z.boolean().default(false) }).prefault({});

const FAULTS = /^\/v1\/devices\/([^/]+)\/faults$/;
const DEVICE = /^\/v1\/devices\/([^/]+)$/;

const ROUTES: readonly Route[] = [
  {
    method: 'GET',
    path: /^\/v1\/status$/,
    run: async (_api, { wholeStatus }) => ({ status: 200, body: new JsonPieces(await wholeStatus.read()) }),
  },
  { method: 'GET', path: DEVICE, run: (api, { name }) => ({ status: 200, body: deviceStatus(api, name) }) },
  {
    method: 'POST',
    path: /^\/v1\/devices$/,
    takesBody: true,
    run: async (api, { body }) => ({ status: 201, body: await api.add(body) }),
  },
  {
    method: 'DELETE',
    path: DEVICE,
    query: { force: ['true', 'false'], data: ['keep', 'remove'] },
    run: async (api, { name, query }) => {
      await api.remove(name, { force: query.get('force') === 'true', removeData: query.get('data') === 'remove' });
      return { status: 200, body: {} };
    },
  },
  {
    method: 'POST',
    path: /^\/v1\/devices\/([^/]+)\/recover$/,
    query: { 'clear-quarantine': ['true', 'false'] },
    run: async (api, { name, query }) => ({
      status: 200,
      body: await api.recover(name, { clearQuarantine: query.get('clear-quarantine') === 'true' }),
    }),
  },
  {
    method: 'POST',
    path: /^\/v1\/devices\/([^/]+)\/restart$/,
    run: async (api, { name }) => ({ status: 200, body: await api.restart(name) }),
  },
  {
    method: 'POST',
    path: /^\/v1\/devices\/([^/]+)\/resize$/,
    takesBody: true,
    run: async (api, { name, body }) => ({
      status: 200,
      body: await api.resize(name, validate(resizeRequest, body, 'body')),
    }),
  },
  {
    method: 'POST',
    path: /^\/v1\/devices\/([^/]+)\/partitions$/,
    run: async (api, { name }) => ({ status: 200, body: { partitions: await api.lookForPartitions(name) } }),
  },
  {
    method: 'GET',
    path: FAULTS,
    run: (api, { name }) => ({ status: 200, body: { rules: api.faults(name) } }),
  },
  {
    method: 'POST',
    path: FAULTS,
    takesBody: true,
    run: (api, { name, body }) => ({ status: 201, body: { id: api.addFault(name, body) } }),
  },
  {
    method: 'DELETE',
    path: FAULTS,
    run: (api, { name }) => {
      api.removeFault(name, null);
      return { status: 200, body: {} };
    },
  },
  {
    method: 'DELETE',
    path: /^\/v1\/devices\/([^/]+)\/faults\/([^/]+)$/,
    run: (api, { name, id }) => {
      api.removeFault(name, id);
      return { status: 200, body: {} };
    },
  },
  {
    method: 'GET',
    path: /^\/v1\/devices\/([^/]+)\/fault-log$/,
    run: (api, { name }) => ({ status: 200, body: { hits: api.faultLog(name, 0) } }),
  },
  {
    method: 'POST',
    path: /^\/v1\/reload$/,
    takesBody: true,
    run: async (api, { body }) => ({
      status: 200,
      body: { devices: await api.reload(validate(reloadRequest, body, 'body')) },
    }),
  },
  {
    method: 'POST',
    path: /^\/v1\/upgrade$/,
    takesBody: true,
    run: async (api, { body }) => {
      const { self } = validate(upgradeRequest, body, 'body');
      if (!self) await api.upgrade();
      else await api.upgradeSelf();
      return { status: 200, body: {}, headers: self ? { connection: 'close' } : {} };
    },
  },
  {
    method: 'POST',
    path: /^\/v1\/stop$/,
    takesBody: true,
    run: async (api, { body }) => {
      await api.stop({ force: validate(stopRequest, body, 'body').force });
      // The supervisor ends next and waits for its connections to end.
      return { status: 200, body: {}, headers: { connection: 'close' } };
    },
  },
];

/** Answers one request. Never rejects: what fails becomes an answer with an `error` in it. */
export async function answer(api: SupervisorApi, wholeStatus: WholeStatus, request: ApiRequest): Promise<ApiAnswer> {
  try {
    const [path = '', search = ''] = request.target.split('?', 2);
    const routes = ROUTES.filter((route) => route.path.test(path));
    const route = routes.find(({ method }) => method === request.method);
    if (!route) return failure(refusal(request.method, path, routes), allowed(routes));
    return await route.run(api, {
      wholeStatus,
      name: decodeURIComponentOrEmpty(route.path.exec(path)?.[1] ?? ''),
      id: decodeURIComponentOrEmpty(route.path.exec(path)?.[2] ?? ''),
      query: parseQuery(search, route.query ?? {}),
      body: parseBody(request, route),
    });
  } catch (error) {
    return failure(error);
  }
}

export function failure(error: unknown, headers: Readonly<Record<string, string>> = {}): ApiAnswer {
  if (!(error instanceof SupervisorError)) {
    const body = { error: { code: 'INTERNAL', message: `internal error: ${messageOf(error)}; see the log` } };
    return { status: 500, body, headers, unexpected: error };
  }
  const { code, message, errno, device } = error;
  return { status: httpStatusOf(code), body: { error: { code, message, errno, device } }, headers };
}

function refusal(method: string, path: string, routes: readonly Route[]): SupervisorError {
  return routes.length === 0
    ? new SupervisorError(`no such resource: ${path}; see ublk-supervisor(8), CONTROL API`, { code: 'NOT_FOUND' })
    : new SupervisorError(`${method} is not possible on ${path}`, { code: 'METHOD' });
}

function allowed(routes: readonly Route[]): Readonly<Record<string, string>> {
  return routes.length === 0 ? {} : { allow: routes.map(({ method }) => method).join(', ') };
}

function deviceStatus(api: SupervisorApi, name: string): unknown {
  const device = api.deviceStatus(name);
  if (!device) throw new SupervisorError(`no device is named ${JSON.stringify(name)}`, { code: 'NOT_FOUND' });
  return device;
}

function decodeURIComponentOrEmpty(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return '';
  }
}

function parseQuery(search: string, known: Readonly<Record<string, readonly string[]>>): ReadonlyMap<string, string> {
  const query = new Map<string, string>();
  for (const [key, value] of new URLSearchParams(search)) {
    const values = Object.hasOwn(known, key) ? known[key] : undefined;
    if (!values?.includes(value) || query.has(key)) {
      const expected = Object.entries(known).map(([name, choices]) => `${name}=${choices.join('|')}`);
      throw badRequest(`query ${JSON.stringify(`${key}=${value}`)}: expected ${expected.join(' or ') || 'none'}`);
    }
    query.set(key, value);
  }
  return query;
}

function parseBody({ contentType, body }: ApiRequest, { method, takesBody = false }: Route): unknown {
  if (body === '') return undefined;
  if (!takesBody) throw badRequest(`body: expected none with this ${method}`);
  if (!/^application\/json *(;|$)/i.test(contentType ?? '')) {
    throw new SupervisorError(`content-type: expected application/json, got ${contentType ?? 'none'}`, {
      code: 'MEDIA_TYPE',
    });
  }
  return parseJson(body, 'body');
}

function badRequest(message: string): SupervisorError {
  return new SupervisorError(message, { code: 'BAD_REQUEST' });
}
