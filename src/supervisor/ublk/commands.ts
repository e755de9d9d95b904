import { readFile } from 'node:fs/promises';
import type { Errno } from '../../error-codes.js';
import { SupervisorError, errnoName } from '../../errors.js';
import {
  controlAction,
  controlCommand,
  type ControlCommand,
  type ControlRequest,
} from '../../native/addon/zygote-channel.js';
import { ublkDeviceInfo } from '../../native/addon/system.js';
import { DEVICE_LIMIT } from '../host/device-limit.js';
import type { ControlAnswer, HeldProcess, Zygote } from '../zygote/zygote.js';

/** Control commands of the kernel's ublk driver, each sent by a control process of a zygote. */

/** Commands that only wait for locks or for FETCHes. */
export const COMMAND_DEADLINE_MS = 10_000;
/** Writing a large dirty page cache back takes its time. */
const WRITE_BACK_DEADLINE_MS = 120_000;

/** In place of an id: the kernel chooses one. */
export const ANY_ID = 0xffffffff;

/** What messages call the actions that send no command. */
const operationName: Readonly<Record<number, string>> = {
  [controlAction.writeBack]: 'write-back',
  [controlAction.claim]: 'claim',
};

function controlRequest(command: ControlCommand, id: number, details: Partial<ControlRequest>): ControlRequest {
  return {
    action: controlAction.command,
    command: controlCommand[command],
    deviceId: id,
    deadlineMs: COMMAND_DEADLINE_MS,
    data: 0,
    ...details,
  };
}

/** Runs one control command; a refusal by the kernel becomes an error with the errno's name as code. */
export async function runCommand(
  zygote: Zygote,
  command: ControlCommand,
  id: number,
  details: Partial<ControlRequest>,
  signal?: AbortSignal,
  deadlineMs = deadlineOf(details.action),
): Promise<ControlAnswer> {
  const request = controlRequest(command, id, details);
  return answered(command, request, () => zygote.control(request, deadlineMs, signal));
}

/** Claims the block device, by a control process that is returned and whose end gives the claim up. */
export async function holdClaim(zygote: Zygote, id: number): Promise<HeldProcess> {
  const request = controlRequest('STOP_DEV', id, { action: controlAction.claim });
  return answered('STOP_DEV', request, () => zygote.hold(request, COMMAND_DEADLINE_MS));
}

async function answered<Answer extends ControlAnswer>(
  command: ControlCommand,
  { action, deviceId: id }: ControlRequest,
  ask: () => Promise<Answer>,
): Promise<Answer> {
  const object = id === ANY_ID ? 'a new ublk device' : `ublk device ${id}`;
  const operation = operationName[action] ?? command;
  try {
    const answer = await ask();
    if (answer.result >= 0) return answer;
    const code = errnoName(answer.result);
    throw new SupervisorError(`${operation} on ${object} failed: ${await reasonOf(command, id, code)} (${code})`, {
      code,
      errno: -answer.result,
    });
  } catch (error) {
    if (!(error instanceof SupervisorError) || error.errno !== undefined) throw error;
    throw new SupervisorError(`${operation} on ${object} failed: ${error.message}`, {
      code: error.code,
      cause: error,
    });
  }
}

function deadlineOf(action: number | undefined): number {
  if (action === controlAction.writeBack) return WRITE_BACK_DEADLINE_MS;
  // The control process keeps the deadline of a retry itself, and answers then.
  return action === controlAction.retryWhileBusy ? 2 * COMMAND_DEADLINE_MS : COMMAND_DEADLINE_MS;
}

/** What an errno of a control command means to the person who reads it. */
async function reasonOf(command: ControlCommand, id: number, code: Errno): Promise<string> {
  if (command === 'ADD_DEV' && code === 'EEXIST') {
    const owner = ublkDeviceInfo(id)?.ownerPid ?? 0;
    const by = owner > 0 ? ` by pid ${owner}` : '';
    return `id ${id} is taken${by}; choose another id or delete that device`;
  }
  if (command === 'ADD_DEV' && code === 'EACCES') {
    const limit = await readFile(DEVICE_LIMIT, 'utf8').catch(() => '?');
    return `the limit of ${limit.trim()} ublk devices is reached; raise it: echo 1024 > ${DEVICE_LIMIT}`;
  }
  if (command === 'START_USER_RECOVERY' && code === 'EBUSY') {
    return 'the kernel does not let go of its dead queue processes; should recover not help, stop it with --force';
  }
  if (code === 'EPERM') return 'not permitted; run as root';
  return 'refused by the kernel';
}
