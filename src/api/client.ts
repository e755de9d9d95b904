import { request } from 'node:http';
import { dirname } from 'node:path';
import { errorCode } from '../error-codes.js';
import { SupervisorError, errnoOf, reasonOf } from '../errors.js';
import { controlSocket, zygotesIn } from './places.js';
import type { DeviceStatus, FaultHitStatus, FaultRuleStatus, PlanEntry, Status } from './status.js';

export interface Client {
  status(): Promise<Status>;
  device(name: string): Promise<DeviceStatus>;
  add(device: object): Promise<DeviceStatus>;
  remove(name: string, options: { readonly force: boolean; readonly removeData: boolean }): Promise<void>;
  recover(name: string, options: { readonly clearQuarantine: boolean }): Promise<DeviceStatus>;
  restart(name: string): Promise<DeviceStatus>;
  resize(name: string, options: { readonly size: string; readonly force: boolean }): Promise<DeviceStatus>;
  lookForPartitions(name: string): Promise<readonly string[]>;
  /** Returns the rule's id. */
  addFault(name: string, rule: unknown): Promise<string>;
  faults(name: string): Promise<readonly FaultRuleStatus[]>;
  /** null: all of them. */
  removeFault(name: string, id: string | null): Promise<void>;
  faultLog(name: string): Promise<readonly FaultHitStatus[]>;
  reload(options: { readonly dryRun: boolean }): Promise<readonly PlanEntry[]>;
  upgrade(options: { readonly self: boolean }): Promise<void>;
  stop(options: { readonly force: boolean }): Promise<void>;
}

interface Answer {
  readonly status: number;
  readonly text: string;
}

/**
 * Talks to the supervisor of `runtimeDir`. Rejects with what the supervisor answered, or with code `NOT_RUNNING`.
 * There is no time-out: how long a flush or a recovery takes is for the supervisor to know, which has its deadlines.
 */
export function createClient(runtimeDir: string): Client {
  const call = async (method: string, path: string, body?: object): Promise<unknown> => {
    const socketPath = controlSocket(runtimeDir);
    const { status, text } = await exchange(socketPath, method, path, body);
    const document = parse(text, socketPath);
    if (status >= 400) throw refusal(document, status);
    return document;
  };
  const device = (name: string): string => `/v1/devices/${encodeURIComponent(name)}`;
  return {
    status: async () => (await call('GET', '/v1/status')) as Status,
    device: async (name) => (await call('GET', device(name))) as DeviceStatus,
    add: async (config) => (await call('POST', '/v1/devices', config)) as DeviceStatus,
    remove: async (name, { force, removeData }) => {
      await call('DELETE', `${device(name)}?force=${String(force)}&data=${removeData ? 'remove' : 'keep'}`);
    },
    recover: async (name, { clearQuarantine }) =>
      (await call('POST', `${device(name)}/recover${clearQuarantine ? '?clear-quarantine=true' : ''}`)) as DeviceStatus,
    restart: async (name) => (await call('POST', `${device(name)}/restart`)) as DeviceStatus,
    resize: async (name, options) => (await call('POST', `${device(name)}/resize`, options)) as DeviceStatus,
    lookForPartitions: async (name) => {
      const answer = (await call('POST', `${device(name)}/partitions`)) as { readonly partitions: readonly string[] };
      return answer.partitions;
    },
    addFault: async (name, rule) => {
      const { id } = (await call('POST', `${device(name)}/faults`, rule as object)) as { readonly id: string };
      return id;
    },
    faults: async (name) => {
      const answer = (await call('GET', `${device(name)}/faults`)) as { readonly rules: readonly FaultRuleStatus[] };
      return answer.rules;
    },
    removeFault: async (name, id) => {
      await call('DELETE', `${device(name)}/faults${id === null ? '' : `/${encodeURIComponent(id)}`}`);
    },
    faultLog: async (name) => {
      const answer = (await call('GET', `${device(name)}/fault-log`)) as { readonly hits: readonly FaultHitStatus[] };
      return answer.hits;
    },
    reload: async (options) => {
      const { devices } = (await call('POST', '/v1/reload', options)) as { readonly devices: readonly PlanEntry[] };
      return devices;
    },
    upgrade: async (options) => {
      await call('POST', '/v1/upgrade', options);
    },
    stop: async ({ force }) => {
      await call('POST', '/v1/stop', { force });
    },
  };
}

function exchange(socketPath: string, method: string, path: string, body: object | undefined): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const text = body === undefined ? '' : JSON.stringify(body);
    const headers = {
      'content-length': Buffer.byteLength(text),
      ...(text === '' ? {} : { 'content-type': 'application/json' }),
    };
    const fail = (error: unknown): void => reject(unreachable(socketPath, error));
    request({ socketPath, method, path, headers, agent: false }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('error', fail);
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString('utf8') }),
      );
    })
      .on('error', fail)
      .end(text);
  });
}

function parse(text: string, socketPath: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SupervisorError(`${socketPath} answered something that is not JSON; is it another program's?`, {
      code: 'PROTOCOL',
      cause: error,
    });
  }
}

function refusal(document: unknown, status: number): SupervisorError {
  const { error } = document as {
    readonly error?: Partial<Pick<SupervisorError, 'code' | 'message' | 'errno' | 'device'>>;
  };
  return new SupervisorError(error?.message ?? `the supervisor answered HTTP status ${status}`, {
    code: error?.code ?? 'PROTOCOL',
    errno: error?.errno,
    device: error?.device,
  });
}

function unreachable(socketPath: string, error: unknown): SupervisorError {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  const context = { errno: errnoOf(error), cause: error };
  switch (code) {
    case 'ENOENT':
    case 'ENOTDIR':
      return new SupervisorError(notRunning(`no ${socketPath}`, socketPath), { code: 'NOT_RUNNING', ...context });
    case 'ECONNREFUSED':
      return new SupervisorError(notRunning(`nobody listens on ${socketPath}`, socketPath), {
        code: 'NOT_RUNNING',
        ...context,
      });
    case 'EACCES':
    case 'EPERM':
      return new SupervisorError(
        `connecting to ${socketPath} failed: ${reasonOf(error)}; run this as root or as a member of the socket's group`,
        { code, ...context },
      );
    default:
      return new SupervisorError(`talking to the supervisor on ${socketPath} failed: ${reasonOf(error)}; see its log`, {
        code: errorCode(code) ?? 'PROTOCOL',
        ...context,
      });
  }
}

function notRunning(evidence: string, socketPath: string): string {
  const left = zygotesIn(dirname(socketPath));
  const devices = left === 1 ? 'one device is served on' : `${left} devices are served on`;
  const meanwhile = left === 0 ? '' : `; ${devices} without it, and the next one takes over`;
  return `the supervisor is not running (${evidence})${meanwhile}; start it with: ublk-supervisor start CONFIG`;
}
