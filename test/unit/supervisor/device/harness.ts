import { setImmediate } from 'node:timers/promises';
import { writableFacts, type BackendFacts, type OpenBackend } from '../../../../backends/interface.js';
import type { DeviceConfig, RecoveryConfig } from '../../../../src/config/types.js';
import { SupervisorError } from '../../../../src/errors.js';
import type { Log } from '../../../../src/log/log.js';
import { Device } from '../../../../src/supervisor/device/device.js';
import type { DeviceState } from '../../../../src/api/status.js';
import { Turns } from '../../../../src/timing/turns.js';
import { ModelClock } from './model-clock.js';
import { type KernelVersion } from './model-device.js';
import { ModelKernel } from './model-kernel.js';

export const facts: BackendFacts = writableFacts;

export const backend: OpenBackend = {
  size: 1 << 20,
  facts,
  files: [],
  dataPaths: ['user-copy', 'copy'],
  close: () => Promise.resolve(),
  created: false,
  remove: () => Promise.resolve(),
};

export const openBackend = (): Promise<OpenBackend> => Promise.resolve(backend);

export const silent: Log = { info: () => undefined, warn: () => undefined, error: () => undefined };

export function deviceConfig(name: string, recovery: Partial<RecoveryConfig> = {}, queues = 2): DeviceConfig {
  return {
    name,
    id: undefined,
    queues,
    depth: 4,
    blockSize: 4096,
    readOnly: false,
    dataPath: 'auto',
    partitions: false,
    backend: { type: 'null', size: 1 << 20 },
    requestTimeoutMs: 60_000,
    user: undefined,
    coreDump: false,
    faults: undefined,
    recovery: {
      mode: 'reissue',
      auto: true,
      maxRestarts: 5,
      windowMs: 60_000,
      poisonAfter: 3,
      onGiveUp: 'park',
      ...recovery,
    },
  };
}

/** What became of a request: `pending`, `done` or the code of the error that it was refused with. */
export interface Outcome {
  result: string;
  message: string;
}

export function outcomeOf(request: Promise<unknown>): Outcome {
  const outcome: Outcome = { result: 'pending', message: '' };
  request.then(
    () => {
      outcome.result = 'done';
    },
    (error: unknown) => {
      outcome.result = error instanceof SupervisorError ? error.code : String(error);
      outcome.message = error instanceof SupervisorError ? error.message : '';
    },
  );
  return outcome;
}

/** The model does everything in microtasks, so after one turn of the event loop nothing moves any more. */
export async function quiet(): Promise<void> {
  await setImmediate();
}

export interface Rig {
  readonly model: ModelKernel;
  readonly clock: ModelClock;
  readonly device: Device;
  readonly states: DeviceState[];
}

export function rig(version: KernelVersion, recovery: Partial<RecoveryConfig> = {}, queues = 2): Rig {
  const model = new ModelKernel(version);
  const clock = new ModelClock();
  const states: DeviceState[] = [];
  const onChange = (state: DeviceState): void => {
    states.push(state);
  };
  const config = deviceConfig('ram0', recovery, queues);
  return {
    model,
    clock,
    states,
    device: new Device({ config, openBackend, kernel: model, turns: new Turns(), log: silent, clock, onChange }),
  };
}

export async function liveRig(
  version: KernelVersion,
  recovery: Partial<RecoveryConfig> = {},
  queues = 2,
): Promise<Rig> {
  const made = rig(version, recovery, queues);
  await made.device.start();
  return made;
}

/** What is wrong with a device that nothing is done to any more; empty when nothing is. */
export function faultsOf({ model, device }: Rig): string[] {
  const faults = [...model.violations];
  const { state, reason } = device.status();
  const claim = (holds: boolean, what: string): void => {
    if (!holds) faults.push(`${state}: ${what}`);
  };
  const inKernel = [...model.devices.values()].filter(({ name }) => name === 'ram0');
  const [held] = inKernel;
  const processes = model.liveProcesses;
  claim(['live', 'degraded', 'failed', 'gone'].includes(state), 'not a resting state');
  claim(state === 'live' || processes === 0 || !model.generation.killable, `${processes} processes left`);
  claim(state === 'live' || state === 'gone' || reason !== null, 'no reason');
  claim(reason === null || (!reason.includes('INTERNAL') && !reason.includes('\n')), `reason ${String(reason)}`);
  if (state === 'live') {
    claim(held?.state === 'LIVE', 'the kernel says otherwise');
    claim(held !== undefined && processes === held.generations.at(-1)?.pids.length, 'not every queue is served');
  }
  if (state === 'degraded') claim(held?.wasStarted === true && !held.stopped, 'the kernel does not hold its I/O');
  if (state === 'gone') {
    claim(inKernel.length === 0, 'still in the kernel');
    claim(model.pages.size === 0, 'shared pages left');
  }
  return faults;
}

/** The device is left in the kernel in state `failed`, as it may only be when it cannot be removed. */
export function leaked({ model, device }: Rig): boolean {
  return device.state === 'failed' && (model.devices.size > 0 || model.pages.size > 0);
}
