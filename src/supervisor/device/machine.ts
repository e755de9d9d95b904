import type { ErrorCode } from '../../error-codes.js';
import type { BlockDeviceUse, DeviceState } from '../../api/status.js';

/**
 * The life of a device as data; device.ts interprets it. What each step does to the kernel is in kernel-device.ts, and why no
 * other order is safe is in docs/reliability.md ("what the kernel does").
 */

/** Steps that have nothing to do (no generation to kill, no device to delete) succeed. */
export type Step =
  | 'adopt'
  | 'backOff'
  | 'openBackend'
  | 'checkBackend'
  | 'addDevice'
  | 'setParameters'
  | 'spawn'
  | 'startDevice'
  | 'exchange'
  | 'shrinkDevice'
  | 'drainGeneration'
  | 'killGeneration'
  | 'checkRecoverable'
  | 'beginRecovery'
  | 'takeTurn'
  | 'endRecovery'
  | 'growDevice'
  | 'assertUnused'
  | 'killUnlessServing'
  | 'stopDevice'
  | 'endGeneration'
  | 'deleteDevice'
  | 'release';

/** What may happen to a device from outside. It stays pending until a state answers it. */
export type DeviceEvent = 'exited' | 'stop' | 'recover' | 'handOver';

/** What a failed step means. `error`: whatever has no entry of its own. */
export type Failure =
  /** The request itself cannot work, so trying it again cannot either. */
  | 'invalid'
  /** No further attempt is due, and the device stays with its I/O waiting. */
  | 'parked'
  /** No further attempt is due, and the device is to be removed. */
  | 'givenUp'
  /** A queue process survives SIGKILL in an uninterruptible sleep, and the kernel must not be asked anything. */
  | 'stuck'
  /** The dead generation's char device is still open. */
  | 'stillOpen'
  /** The backend is not open, and is tried again. */
  | 'unopened'
  /** The backend cannot be loaded as it now is. */
  | 'unloadable'
  /** The backend's data is no longer what was opened: serving it would mix two states of it. */
  | 'changed'
  /** The kernel did not take the smaller size; nothing else was changed yet. */
  | 'unshrunk'
  /** The kernel did not take the larger size, which the generation serves by now. */
  | 'ungrown'
  /** No generation can ever serve this device again. */
  | 'lost'
  /** The kernel has a device that was never started, or was stopped. */
  | 'dead'
  | 'error';

/** Where `stopping` leads. `adding`: the device is made anew, which is the only way to repeat a start. */
export type AfterRemoval = 'gone' | 'failed' | 'adding';

export type Target =
  | DeviceState
  | { readonly state: 'stopping'; readonly then: AfterRemoval }
  /** The stop or the hand-over under way, if any, is refused; live, degraded or failed, whichever the device still is. */
  | 'refuse';

/** `later`: the event is left to the first state with another answer. */
export type Answer = Target | 'later';

export interface Rule {
  readonly blockDevice: BlockDeviceUse;
  /** A generation serves the device, or the next one is on its way. */
  readonly served: boolean;
  /** The device rests here because of something that an operator has to look at. */
  readonly trouble: boolean;
  readonly steps: readonly Step[];
  /** Where all steps done lead; null: the device rests here. `then`: what `remove` was asked for. */
  readonly done: Target | 'then' | null;
  readonly on: Readonly<Record<DeviceEvent, Answer>>;
  readonly failed: Readonly<Partial<Record<Failure, Target>>>;
}

const nothing = { exited: 'later', stop: 'later', recover: 'later', handOver: 'later' } as const;

const remove = (then: AfterRemoval): Target => ({ state: 'stopping', then });

export const machine: Readonly<Record<DeviceState, Rule>> = {
  // An earlier supervisor left the device. Whatever that was doing, the kernel has the device in one of three states. One
  // that is served needs no backend of ours for that; it is opened when the device is live.
  adopting: {
    blockDevice: 'kept',
    served: true,
    trouble: false,
    steps: ['adopt'],
    done: 'live',
    on: nothing,
    failed: { dead: remove('adding'), error: 'recovering' },
  },
  adding: {
    blockDevice: 'absent',
    served: true,
    trouble: false,
    steps: ['backOff', 'openBackend', 'checkBackend', 'addDevice', 'setParameters'],
    done: 'starting',
    on: { exited: 'later', stop: remove('gone'), recover: 'later', handOver: 'later' },
    failed: {
      parked: 'failed',
      givenUp: 'failed',
      unopened: 'failed',
      changed: 'failed',
      invalid: remove('failed'),
      error: remove('adding'),
    },
  },
  // A stop or an exit makes startDevice fail; when the kernel was quicker the device is live and has an answer.
  starting: {
    blockDevice: 'absent',
    served: true,
    trouble: false,
    steps: ['spawn', 'startDevice'],
    done: 'live',
    on: nothing,
    failed: { invalid: remove('failed'), error: remove('adding') },
  },
  live: {
    blockDevice: 'usable',
    served: true,
    trouble: false,
    steps: [],
    done: null,
    on: { exited: 'recovering', stop: 'draining', recover: 'later', handOver: 'handingOver' },
    failed: {},
  },
  // What is exchanged is the code, the options or the size; whatever fails after that goes back to what was served before.
  // Exits are expected from the drain on.
  handingOver: {
    blockDevice: 'kept',
    served: true,
    trouble: false,
    steps: [
      'checkBackend',
      'exchange',
      'shrinkDevice',
      'drainGeneration',
      'killGeneration',
      'checkRecoverable',
      'beginRecovery',
      'spawn',
      'endRecovery',
      'growDevice',
    ],
    done: 'live',
    on: { exited: 'recovering', stop: 'later', recover: 'later', handOver: 'later' },
    failed: {
      changed: 'refuse',
      unshrunk: 'refuse',
      stuck: 'degraded',
      lost: remove('failed'),
      error: 'recovering',
    },
  },
  // A stop waits until this attempt ended: killing a replacement that is fetching loses the device on some kernels.
  recovering: {
    blockDevice: 'kept',
    served: true,
    trouble: false,
    steps: [
      'killGeneration',
      'checkRecoverable',
      'backOff',
      'openBackend',
      'checkBackend',
      'beginRecovery',
      // Not before: what keeps the kernel from beginning, such as a hung store, keeps no other device waiting.
      'takeTurn',
      'spawn',
      'endRecovery',
      // After a crash in the middle of a change of size.
      'growDevice',
    ],
    done: 'live',
    on: nothing,
    failed: {
      stuck: 'degraded',
      stillOpen: 'degraded',
      unopened: 'degraded',
      unloadable: 'degraded',
      parked: 'degraded',
      changed: 'degraded',
      ungrown: 'refuse',
      givenUp: remove('failed'),
      lost: remove('failed'),
      error: 'recovering',
    },
  },
  degraded: {
    blockDevice: 'kept',
    served: false,
    trouble: true,
    steps: [],
    done: null,
    on: { exited: 'later', stop: 'draining', recover: 'recovering', handOver: 'handingOver' },
    failed: {},
  },
  draining: {
    blockDevice: 'kept',
    served: true,
    trouble: false,
    steps: ['assertUnused'],
    done: remove('gone'),
    on: { exited: 'recovering', stop: 'later', recover: 'later', handOver: 'later' },
    failed: { error: 'refuse' },
  },
  // Exits are expected here; STOP_DEV and DEL_DEV need every queue process to be either healthy or dead.
  stopping: {
    blockDevice: 'absent',
    served: false,
    trouble: false,
    steps: ['killUnlessServing', 'stopDevice', 'endGeneration', 'deleteDevice', 'release'],
    done: 'then',
    on: nothing,
    failed: { error: 'refuse' },
  },
  // Nothing is in the kernel, or something that could not be removed: both ways out begin with removing it.
  failed: {
    blockDevice: 'absent',
    served: false,
    trouble: true,
    steps: [],
    done: null,
    on: { exited: 'later', stop: remove('gone'), recover: remove('adding'), handOver: 'later' },
    failed: {},
  },
  gone: {
    blockDevice: 'absent',
    served: false,
    trouble: false,
    steps: [],
    done: null,
    on: nothing,
    failed: {},
  },
};

const callerErrors = {
  EEXIST: 'invalid',
  EINVAL: 'invalid',
  EACCES: 'invalid',
  EPERM: 'invalid',
  IN_USE: 'invalid',
  BACKEND: 'invalid',
} as const;

/** By step and the error's code; `*` is any other code. */
const failures: Readonly<Partial<Record<Step, Readonly<Partial<Record<ErrorCode | '*', Failure>>>>>> = {
  // A kernel does not learn a feature by being asked again.
  addDevice: { ...callerErrors, EOPNOTSUPP: 'invalid' },
  setParameters: callerErrors,
  spawn: callerErrors,
  backOff: { PARKED: 'parked', GIVEN_UP: 'givenUp' },
  openBackend: { '*': 'unopened' },
  checkBackend: { '*': 'changed' },
  exchange: { '*': 'changed' },
  shrinkDevice: { '*': 'unshrunk' },
  killGeneration: { '*': 'stuck' },
  checkRecoverable: { '*': 'lost' },
  beginRecovery: { EBUSY: 'stillOpen', TIMEOUT: 'stillOpen', ENODEV: 'lost' },
  endRecovery: { ENODEV: 'lost', UNLOADABLE: 'unloadable' },
  adopt: { DEAD: 'dead' },
  growDevice: { '*': 'ungrown' },
};

/** Where a failed step leads. */
export function targetOfFailure(state: DeviceState, step: Step, code: ErrorCode): Target {
  const meanings = failures[step] ?? {};
  const failure = meanings[code] ?? meanings['*'] ?? 'error';
  const { failed } = machine[state];
  const target = failed[failure] ?? failed.error;
  if (target === undefined) throw new TypeError(`state ${state} has no answer to a failing ${step}`);
  return target;
}
