import { fork } from 'node:child_process';
import { canLook, tryLoadingBackend } from '../../backends/registry.js';
import type { DeviceConfig } from '../config/types.js';
import { SupervisorError, messageOf } from '../errors.js';
import type { LookAnswer, LookRequest } from '../look-proc/messages.js';
import { programPath } from '../package-root.js';
import { tooManyQueues } from '../supervisor/device/spec.js';
import { fewAtOnce } from '../timing/few-at-once.js';

/** So many file systems can hang at once before others wait for them. */
const THREADS = 128;
/** What looks does nothing else: nothing was answered for so long because a file system does not answer. */
const PATIENCE_MS = 10_000;

const isRoot = process.geteuid?.() === 0;

type Look = Exclude<LookAnswer, { readonly index: null }>;

/**
 * What is wrong with the files that devices name, as far as looking tells, and with the modules, as far as loading them tells:
 * nothing is opened or made. One line each, `devices[0].backend: opening /srv/disk.img failed: ...`. Ends also where a file
 * system does not answer.
 */
export async function problemsOfBackends(devices: readonly DeviceConfig[]): Promise<readonly string[]> {
  const problems = new Map(await problemsOfFiles(devices));
  const found = [...devices.entries()].filter(([index]) => !problems.has(index));
  const tried = await fewAtOnce(found, async ([, device]) => {
    const { backend, name, user } = device;
    const loaded = await tryLoadingBackend(backend, { device: name, user: isRoot ? user : undefined });
    return tooManyQueues(device, loaded?.maxQueues ?? undefined);
  });
  for (const [at, [index]] of found.entries()) {
    const outcome = tried[at];
    const problem = outcome?.status === 'rejected' ? messageOf(outcome.reason) : (outcome?.value ?? null);
    if (problem !== null) problems.set(index, problem);
  }
  return [...problems]
    .sort(([a], [b]) => a - b)
    .flatMap(([index, problem]) => problem.split('\n').map((line) => `devices[${index}].backend: ${line}`));
}

/** By the place of the device. */
async function problemsOfFiles(devices: readonly DeviceConfig[]): Promise<readonly (readonly [number, string])[]> {
  const looked = [...devices.entries()].filter(([, { backend }]) => canLook(backend));
  if (looked.length === 0) return [];
  const looks = await lookAtAll(
    looked.map(([, { name, backend, blockSize = null, readOnly }]) => {
      return { options: backend, context: { device: name, blockSize, readOnly } };
    }),
  );
  const owners = new Map<string, number>();
  return looked.flatMap(([index, { backend }], at) => {
    const { error, identity } = looks.get(at) ?? { error: hangs(backend), identity: null };
    const owner = identity === null ? undefined : owners.get(identity);
    if (identity !== null && owner === undefined) owners.set(identity, index);
    const taken = `it is the same as that of devices[${String(owner)}]; expected a different one for each device`;
    const problem = error ?? (owner === undefined ? null : taken);
    return problem === null ? [] : [[index, problem] as const];
  });
}

function hangs(backend: DeviceConfig['backend']): string {
  const path = 'path' in backend ? backend.path : backend.type;
  return `looking at ${path} failed: nothing answered for ${PATIENCE_MS / 1000} s; see whether its file system hangs`;
}

/** By the place of the request; those that did not answer are missing. */
function lookAtAll(requests: readonly LookRequest[]): Promise<ReadonlyMap<number, Look>> {
  // Whatever it is kept waiting by, it has nothing open that somebody reads to the end.
  const child = fork(programPath('look-proc'), [], {
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    execArgv: [],
    env: { UV_THREADPOOL_SIZE: String(THREADS) },
  });
  const looks = new Map<number, Look>();
  return new Promise((resolve, reject) => {
    let patience: NodeJS.Timeout | undefined;
    const done = (): void => {
      clearTimeout(patience);
      child.kill('SIGKILL');
      if (child.connected) child.disconnect();
      child.unref();
      resolve(looks);
    };
    child.on('message', (message) => {
      const answer = message as LookAnswer;
      if (answer.index !== null) looks.set(answer.index, answer);
      clearTimeout(patience);
      if (looks.size === requests.length) done();
      else patience = setTimeout(done, PATIENCE_MS);
    });
    const failed = (reason: string): void => {
      clearTimeout(patience);
      reject(new SupervisorError(`looking at the files of devices failed: ${reason}; try again`, { code: 'OS' }));
    };
    child.once('error', ({ message }) => failed(message));
    // Without effect when all is done.
    child.once('exit', (code, signal) => failed(`its process ended (${signal ?? `code ${String(code)}`})`));
    child.send([...requests]);
  });
}
