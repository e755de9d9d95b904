import t from 'tap';
import {
  machine,
  targetOfFailure,
  type Rule,
  type Step,
  type Target,
} from '../../../../src/supervisor/device/machine.js';
import type { DeviceState } from '../../../../src/api/status.js';
import type { ErrorCode } from '../../../../src/error-codes.js';

const rules = Object.entries(machine) as [DeviceState, Rule][];
const resting = rules.filter(([, { done }]) => done === null).map(([state]) => state);

/** Every state that a target may lead to; a refused stop leads back to where the device rests. */
function states(target: Target | 'then'): readonly DeviceState[] {
  if (target === 'then') return ['gone', 'failed', 'adding'];
  if (target === 'refuse') return ['live', 'degraded', 'failed'];
  return [typeof target === 'object' ? target.state : target];
}

function successors({ done, on, failed }: Rule): DeviceState[] {
  const answers = Object.values(on).filter((answer) => answer !== 'later');
  return [...answers, ...Object.values(failed), ...(done === null ? [] : [done])].flatMap((to) => [...states(to)]);
}

t.test('a state rests exactly when it has no steps', (t) => {
  t.strictSame(resting, ['live', 'degraded', 'failed', 'gone']);
  for (const [state, { steps, done }] of rules) t.equal(steps.length === 0, done === null, state);
  t.end();
});

t.test('every state can be reached and, but for gone, ends in gone when it is stopped', (t) => {
  const reachable = new Set<DeviceState>(['adding', 'adopting']);
  for (const state of reachable) for (const next of successors(machine[state])) reachable.add(next);
  t.strictSame([...reachable].sort(), Object.keys(machine).sort());
  for (const state of resting) t.equal(machine[state].on.stop !== 'later', state !== 'gone', state);
  for (const [state] of rules) {
    const from = new Set([state]);
    for (const at of from) for (const next of successors(machine[at])) from.add(next);
    t.ok(from.has('gone'), state);
  }
  t.end();
});

t.test('every step of every state has an answer to any failure', (t) => {
  const codes = [
    'EEXIST',
    'EBUSY',
    'ENODEV',
    'TIMEOUT',
    'PARKED',
    'GIVEN_UP',
    'LOST',
    'STUCK',
    'ABORTED',
    'EIO',
  ] as const;
  for (const [state, { steps }] of rules) {
    for (const step of steps) for (const code of codes) t.doesNotThrow(() => targetOfFailure(state, step, code));
  }
  t.end();
});

t.test('a failure in a state that has no steps is a mistake of ours', (t) => {
  t.throws(() => targetOfFailure('live', 'spawn', 'EIO'), TypeError);
  t.end();
});

t.test('failures that the kernel facts single out', (t) => {
  const removed = (then: string): object => ({ state: 'stopping', then });
  const cases: [DeviceState, Step, ErrorCode, unknown][] = [
    ['adding', 'addDevice', 'EEXIST', removed('failed')],
    ['adding', 'addDevice', 'ENOMEM', removed('adding')],
    ['adding', 'backOff', 'GIVEN_UP', 'failed'],
    ['adding', 'checkBackend', 'BACKEND', 'failed'],
    ['starting', 'spawn', 'EPERM', removed('failed')],
    ['starting', 'startDevice', 'EINVAL', removed('adding')],
    ['recovering', 'spawn', 'EINVAL', 'recovering'],
    ['recovering', 'killGeneration', 'STUCK', 'degraded'],
    ['recovering', 'killGeneration', 'TIMEOUT', 'degraded'],
    ['recovering', 'checkRecoverable', 'LOST', removed('failed')],
    ['recovering', 'checkBackend', 'BACKEND', 'degraded'],
    ['recovering', 'beginRecovery', 'EBUSY', 'degraded'],
    ['recovering', 'beginRecovery', 'ENODEV', removed('failed')],
    ['recovering', 'endRecovery', 'ENODEV', removed('failed')],
    ['recovering', 'backOff', 'PARKED', 'degraded'],
    ['recovering', 'backOff', 'GIVEN_UP', removed('failed')],
    ['draining', 'assertUnused', 'IN_USE', 'refuse'],
    ['stopping', 'stopDevice', 'EBUSY', 'refuse'],
  ];
  for (const [state, step, code, target] of cases) {
    t.strictSame(targetOfFailure(state, step, code), target, `${state} ${step} ${code}`);
  }
  t.end();
});

t.test('orders that the kernel punishes do not occur', (t) => {
  for (const [state, { steps }] of rules) {
    const inOrder = (first: Step, second: Step): void => {
      if (!steps.includes(second)) return;
      t.ok(
        steps.includes(first) && steps.indexOf(first) < steps.indexOf(second),
        `${state}: ${first} before ${second}`,
      );
    };
    inOrder('killGeneration', 'checkRecoverable');
    inOrder('checkRecoverable', 'beginRecovery');
    inOrder('checkBackend', 'beginRecovery');
    inOrder('checkBackend', 'addDevice');
    inOrder('killGeneration', 'beginRecovery');
    inOrder('beginRecovery', 'endRecovery');
    inOrder('spawn', 'endRecovery');
    inOrder('spawn', 'startDevice');
    inOrder('addDevice', 'setParameters');
    inOrder('killUnlessServing', 'stopDevice');
    inOrder('endGeneration', 'deleteDevice');
    inOrder('deleteDevice', 'release');
  }
  t.end();
});
