import t from 'tap';
import { SupervisorError } from '../../../../src/errors.js';
import { faultsOf, leaked, outcomeOf, quiet, rig, type Rig } from './harness.js';
import { kernelVersions, type KernelVersion } from './model-device.js';
import { operations, type Moment } from './model-kernel.js';

const codes = [
  ...['EACCES', 'EBUSY', 'EEXIST', 'EINTR', 'EINVAL', 'EIO', 'ENODEV', 'ENOMEM', 'EOPNOTSUPP', 'EPERM'],
  ...['ABORTED', 'BACKEND', 'IN_USE', 'STUCK', 'TIMEOUT', 'ZYGOTE'],
] as const;

/** A life with two crashes and a stop. Nothing may be left waiting, nor be in a state that the kernel contradicts. */
async function live(made: Rig): Promise<string[]> {
  const { device, model } = made;
  const requests = [outcomeOf(device.start())];
  await quiet();
  for (let crash = 0; crash < 2; crash += 1) {
    if (device.state === 'live') model.generation.exit(crash % model.generation.pids.length);
    await quiet();
  }
  const faults = faultsOf(made);
  requests.push(outcomeOf(device.stop({ force: false })));
  await quiet();
  faults.push(...faultsOf(made), ...requests.filter(({ result }) => result === 'pending').map(() => 'a request waits'));
  return faults;
}

/** Once the fault is mended everything can be brought to an end. */
async function mend({ model, device, ...rest }: Rig): Promise<string[]> {
  model.heal();
  if (device.state !== 'gone') await device.recover().catch(() => undefined);
  const faults = device.state === 'gone' || device.state === 'live' ? [] : [`not live but ${device.state} when mended`];
  await device.stop({ force: true });
  return [...faults, ...faultsOf({ model, device, ...rest })];
}

interface Case {
  readonly version: KernelVersion;
  readonly onGiveUp: 'park' | 'stop';
  readonly queues: number;
}

const cases: readonly Case[] = kernelVersions.flatMap((version) => [
  { version, onGiveUp: 'park', queues: 2 },
  { version, onGiveUp: 'stop', queues: 1 },
]);

async function tryFault(theCase: Case, inject: (made: Rig) => void, mayLeak: boolean): Promise<string[]> {
  const made = rig(theCase.version, { onGiveUp: theCase.onGiveUp }, theCase.queues);
  inject(made);
  const faults = await live(made);
  if (leaked(made) && !mayLeak) faults.push('left in the kernel');
  return [...faults, ...(await mend(made))];
}

for (const theCase of cases) {
  t.test(
    `${theCase.version}, ${theCase.onGiveUp}: each step fails with each error, once or from then on`,
    async (t) => {
      const whole = rig(theCase.version, {}, theCase.queues);
      t.strictSame(await live(whole), []);
      const nths = new Map<Moment, number>();
      for (const call of whole.model.calls.filter((call) => !call.includes(':'))) {
        const nth = (nths.get(call) ?? 0) + 1;
        nths.set(call, nth);
        for (const code of codes) {
          // ENODEV is not an error of DEL_DEV but the truth: there is a test for that below.
          if (call === 'deleteDevice' && code === 'ENODEV') continue;
          for (const how of ['fail', 'failFrom'] as const) {
            const inject = ({ model }: Rig): void => model[how](call, nth, code);
            const faults = await tryFault(theCase, inject, call === 'deleteDevice');
            if (faults.length > 0) t.fail(`${how} ${call} ${nth}: ${code}`, { faults });
          }
        }
      }
    },
  );

  t.test(`${theCase.version}, ${theCase.onGiveUp}: a command that was obeyed fails nevertheless`, async (t) => {
    // Not begun twice where the kernel minds: there this is lost until the device is made anew.
    const obeyed: Moment[] = ['setParameters', 'startDevice', 'endRecovery', 'claim', 'stopDevice', 'deleteDevice'];
    if (theCase.version !== '6.12') obeyed.push('beginRecovery');
    for (const operation of obeyed) {
      for (const nth of [1, 2]) {
        const inject = ({ model }: Rig): void => model.fail(operation, nth, 'TIMEOUT', 'after');
        const faults = await tryFault(theCase, inject, false);
        if (operation !== 'deleteDevice') t.strictSame(faults, [], `${operation} ${nth}`);
      }
    }
  });

  t.test(`${theCase.version}, ${theCase.onGiveUp}: a queue process dies at each moment`, async (t) => {
    const moments: Moment[] = [
      ...operations,
      ...(['startDevice:preparing', 'startDevice:fetching', 'startDevice:fetched'] as const),
      ...(['endRecovery:preparing', 'endRecovery:fetching', 'endRecovery:fetched'] as const),
    ];
    for (const moment of moments) {
      for (const when of ['before', 'after'] as const) {
        for (const nth of [1, 2]) {
          for (const queue of [0, theCase.queues - 1]) {
            const inject = ({ model }: Rig): void =>
              model.at(moment, nth, () => model.devices.size === 1 && model.only.generations.at(-1)?.exit(queue), when);
            const name = `${when} ${moment} ${nth}, queue ${queue}`;
            t.strictSame(await tryFault(theCase, inject, false), [], name);
          }
        }
      }
    }
  });
}

t.test(
  'a replacement that dies: where the kernel allows it the next one takes over, else the device is lost',
  async (t) => {
    const expected: Record<KernelVersion, Partial<Record<Moment, string>>> = {
      '6.12': {
        'endRecovery:preparing': 'live, 1 begun',
        'endRecovery:fetching': 'failed',
        'endRecovery:fetched': 'live, 2 begun',
      },
      '6.16': {
        'endRecovery:preparing': 'live, 2 begun',
        'endRecovery:fetching': 'failed',
        'endRecovery:fetched': 'live, 2 begun',
      },
      '7.2': {
        'endRecovery:preparing': 'live, 2 begun',
        'endRecovery:fetching': 'live, 2 begun',
        'endRecovery:fetched': 'live, 2 begun',
      },
    };
    for (const version of kernelVersions) {
      for (const [moment, outcome] of Object.entries(expected[version]) as [Moment, string][]) {
        const made = rig(version);
        await made.device.start();
        made.model.at(moment, 1, () => made.model.generation.exit(1));
        made.model.generation.exit(0);
        await quiet();
        const begun = made.model.calls.filter((call) => call === 'beginRecovery').length;
        const { state, reason } = made.device.status();
        t.equal(state === 'live' ? `live, ${begun} begun` : state, outcome, `${version} ${moment}`);
        t.match(reason, state === 'failed' ? /while it was fetching/ : null);
        t.strictSame(faultsOf(made), []);
        t.notOk(leaked(made));
        await made.device.recover();
        made.model.generation.exit(0);
        await quiet();
        t.equal(made.device.state, 'live', 'a device that was made anew is as good as new');
      }
    }
  },
);

t.test('a start that fails is repeated on a new device, a wrong request is not', async (t) => {
  const crashing = rig('6.12');
  crashing.model.at('startDevice:fetching', 1, () => crashing.model.generation.exit(0));
  await crashing.device.start();
  t.equal(crashing.model.calls.filter((call) => call === 'addDevice').length, 2);
  t.match(crashing.device.status(), { state: 'live', generation: 2, lastExit: { queue: 0 } });

  for (const operation of ['addDevice', 'setParameters', 'spawn'] as const) {
    for (const code of ['EEXIST', 'EINVAL', 'EACCES', 'EPERM', 'IN_USE', 'BACKEND'] as const) {
      const { model, device } = rig('7.2');
      model.fail(operation, 1, code);
      await t.rejects(device.start(), { code });
      t.strictSame([device.state, model.devices.size], ['failed', 0], `${operation} ${code}`);
      t.equal(model.calls.filter((call) => call === operation).length, 1);
    }
  }
});

t.test('a start that keeps failing ends in failed and says why', async (t) => {
  const { model, device, clock } = rig('7.2', { maxRestarts: 3, onGiveUp: 'stop' });
  model.failFrom('spawn', 1, 'ENOMEM');
  await t.rejects(device.start(), { code: 'GIVEN_UP', message: /injected \(ENOMEM\); the limit of 3 restarts/ });
  t.match(device.status(), { id: null, state: 'failed', reason: /ENOMEM/ });
  t.strictSame(clock.sleeps, [10, 20]);
});

t.test('a device that somebody else deleted is failed, and nothing of it is left', async (t) => {
  for (const version of kernelVersions) {
    const made = rig(version);
    await made.device.start();
    made.model.generation.exit(0);
    made.model.devices.clear();
    await quiet();
    t.match(made.device.status(), { id: null, state: 'failed' });
    t.notOk(leaked(made));
    await made.device.recover();
    made.model.at('claim', 1, () => made.model.devices.clear(), 'after');
    await made.device.stop({ force: false });
    t.strictSame([made.device.state, faultsOf(made)], ['gone', []], version);
  }
});

t.test('a device that cannot be removed says so, and keeps why it was removed', async (t) => {
  const made = rig('7.2', { maxRestarts: 0, onGiveUp: 'stop' });
  await made.device.start();
  made.model.fail('deleteDevice', 1, 'TIMEOUT');
  made.model.generation.exit(0);
  await quiet();
  t.match(made.device.status(), {
    id: 0,
    state: 'failed',
    reason: /limit of 0 restarts.*deleteDevice failed: injected/,
  });
  await made.device.stop({ force: false });
  t.strictSame([made.device.state, faultsOf(made)], ['gone', []]);
});

t.test('anything that is not one of our errors is named, not lost', async (t) => {
  const { model, device } = rig('7.2', { maxRestarts: 0 });
  model.at('setParameters', 1, () => Promise.reject(new RangeError('out of range')));
  const error: unknown = await device.start().catch((caught: unknown) => caught);
  t.ok(error instanceof SupervisorError);
  t.match(error, {
    code: 'PARKED',
    message: /setParameters of device ram0 failed: out of range/,
    cause: { code: 'INTERNAL' },
  });
});
