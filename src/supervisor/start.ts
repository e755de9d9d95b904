import { failureOf, SupervisorError } from '../errors.js';
import type { Log } from '../log/log.js';
import { Turns } from '../timing/turns.js';
import type { ManagedDevice } from './managed-device.js';

/** How long devices may have to wait for one before them, whose backend is not opened or which is not live. */
const ORDER_PATIENCE_MS = 5_000;
/** So many backends are opened before it is their device's turn. */
const OPENED_AHEAD = 8;
/** How long a start waits for a backend to be opened: what waits for the start is not to wait for that one. */
const START_PATIENCE_MS = 60_000;

export interface StartFailure {
  readonly name: string;
  readonly error: SupervisorError;
}

/**
 * Starts devices, one ADD_DEV after the other, wanted ids first: the ids that the kernel chooses are the same at every start.
 * But no device waits long for a backend that is slow to open. Of many devices a few are on their way at a time: what one
 * waits for is done for it before its deadlines, not for all of them at the end.
 */
export async function startInOrder(devices: readonly ManagedDevice[], log: Log): Promise<StartFailure[]> {
  const wanted = devices.filter(({ config }) => config.id !== undefined);
  const chosen = devices.filter(({ config }) => config.id === undefined);
  const inOrder = [...wanted, ...chosen];
  const starting: Promise<StartFailure[]>[] = [];
  const turns = new Turns(ORDER_PATIENCE_MS);
  for (const managed of inOrder.slice(0, OPENED_AHEAD)) void open(managed);
  let patience = later(ORDER_PATIENCE_MS);
  let waits = true;
  for (const [index, managed] of inOrder.entries()) {
    waits &&= (await Promise.race([open(managed), patience])) === true;
    void open(inOrder[index + OPENED_AHEAD]);
    const turn = turns.take();
    await turn.begun;
    // The order is kept only as long as one backend after the other is open in time.
    if (waits) patience = later(ORDER_PATIENCE_MS);
    starting.push(startPatiently(managed, log).finally(turn.end));
    await Promise.race([managed.added, patience]);
  }
  return (await Promise.all(starting)).flat();
}

/** Returns why the start failed, if it did. What becomes of a device whose backend is open at last is in `status`. */
export async function startPatiently(managed: ManagedDevice, log: Log): Promise<StartFailure[]> {
  const { name } = managed.config;
  const started = managed.start().then(() => true);
  try {
    const first = await Promise.race([started, later(START_PATIENCE_MS)]);
    if (first === undefined && managed.device.backend === null) {
      const reason = `it takes longer than ${START_PATIENCE_MS / 1000} s, and is served as soon as that is done`;
      const message = `opening the backend of device ${name} failed: ${reason}`;
      log.error({ device: name }, message);
      throw new SupervisorError(message, { code: 'TIMEOUT', device: name });
    }
    await started;
    return [];
  } catch (error) {
    started.catch(() => undefined);
    return [{ name, error: failureOf(error, `starting device ${name}`) }];
  }
}

async function open(managed: ManagedDevice | undefined): Promise<true> {
  if (managed?.device.state !== 'gone') await managed?.device.open().catch(() => undefined);
  return true;
}

/** Keeps no process from ending. */
function later(ms: number): Promise<undefined> {
  return new Promise((resolve) => {
    setTimeout(() => resolve(undefined), ms).unref();
  });
}
