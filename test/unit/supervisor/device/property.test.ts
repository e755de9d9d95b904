import fc from 'fast-check';
import t from 'tap';
import { faultsOf, leaked, outcomeOf, quiet, rig, type Outcome, type Rig } from './harness.js';
import { kernelVersions } from './model-device.js';
import { operations, type Moment } from './model-kernel.js';

const operation = fc.constantFrom<Moment[]>(...operations);
const moments = fc.oneof(
  operation,
  fc.constantFrom<Moment[]>(
    'startDevice:preparing',
    'startDevice:fetching',
    'startDevice:fetched',
    'endRecovery:preparing',
    'endRecovery:fetching',
    'endRecovery:fetched',
  ),
);
const codes = fc.constantFrom('EBUSY', 'EINVAL', 'ENOMEM', 'EIO', 'EPERM', 'TIMEOUT', 'ABORTED', 'IN_USE', 'STUCK');
const queue = fc.nat(1);

type Event =
  | { readonly kind: 'start' | 'recover' | 'uninterruptible' | 'thaw' | 'open' | 'close' | 'hang' | 'quiet' }
  | { readonly kind: 'stop'; readonly force: boolean }
  | { readonly kind: 'exit'; readonly queue: number }
  | { readonly kind: 'pass'; readonly microtasks: number }
  | { readonly kind: 'sleeps'; readonly held: boolean };

const event: fc.Arbitrary<Event> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('exit' as const), queue }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('pass' as const), microtasks: fc.nat(40) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('stop' as const), force: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('sleeps' as const), held: fc.boolean() }) },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom('recover', 'uninterruptible', 'thaw', 'open', 'close', 'hang', 'quiet'),
    }),
  },
);

const fault = fc.oneof(
  fc.record({ moment: operation, nth: fc.integer({ min: 1, max: 4 }), code: codes }),
  fc.record({ moment: moments, nth: fc.integer({ min: 1, max: 4 }), queue }),
);

async function happen({ model, device, clock }: Rig, event: Event, requests: Outcome[]): Promise<void> {
  const devices = [...model.devices.values()];
  const generations = devices.flatMap(({ generations }) => generations);
  switch (event.kind) {
    case 'start':
      requests.push(outcomeOf(device.start()));
      break;
    case 'recover':
      requests.push(outcomeOf(device.recover()));
      break;
    case 'stop':
      requests.push(outcomeOf(device.stop({ force: event.force })));
      break;
    case 'exit':
      generations.at(-1)?.exit(event.queue);
      break;
    case 'uninterruptible':
      for (const generation of generations) generation.killable = false;
      break;
    case 'thaw':
      for (const generation of generations) generation.thaw();
      break;
    case 'open':
    case 'close':
      for (const each of devices) each.open = event.kind === 'open';
      break;
    case 'hang':
      for (const each of devices) each.hung = true;
      break;
    case 'sleeps':
      clock.held = event.held;
      break;
    case 'pass':
      for (let passed = 0; passed < event.microtasks; passed += 1) await Promise.resolve();
      break;
    case 'quiet':
      await quiet();
  }
}

/** Nothing is wrong with the host any more, and whatever waited goes on. */
async function heal(made: Rig, requests: Outcome[]): Promise<void> {
  const { model, clock } = made;
  model.heal();
  clock.held = false;
  await happen(made, { kind: 'thaw' }, requests);
  await happen(made, { kind: 'close' }, requests);
  clock.wake();
  await quiet();
}

for (const version of kernelVersions) {
  t.test(
    `${version}: whatever happens in whatever order, no rule of the kernel is broken and all can be ended`,
    async (t) => {
      let rested = 0;
      const property = fc.asyncProperty(
        fc.array(event, { maxLength: 25 }),
        fc.array(fault, { maxLength: 3 }),
        fc.record({ auto: fc.boolean(), maxRestarts: fc.nat(3), onGiveUp: fc.constantFrom('park', 'stop') }),
        fc.integer({ min: 1, max: 2 }),
        async (events, faults, recovery, queues) => {
          const made = rig(version, recovery, queues);
          const { model, device } = made;
          const requests: Outcome[] = [];
          for (const { moment, nth, ...how } of faults) {
            if ('code' in how) model.fail(moment, nth, how.code);
            else model.at(moment, nth, () => model.devices.get(0)?.generations.at(-1)?.exit(how.queue));
          }
          await happen(made, { kind: 'start' }, requests);
          for (const each of events) {
            await happen(made, each, requests);
            if (model.violations.length > 0) break;
          }
          await heal(made, requests);
          const wrong = faultsOf(made);
          if (requests.some(({ result }) => result === 'pending')) wrong.push('a request waits for ever');
          if (device.state === 'live') rested += 1;
          await happen(made, { kind: 'recover' }, requests);
          await quiet();
          if (device.state !== 'gone' && device.state !== 'live') wrong.push(`${device.state} after recover`);
          await device.stop({ force: true });
          wrong.push(...faultsOf(made), ...(leaked(made) ? ['leaked'] : []));
          if (wrong.length > 0) throw new Error(wrong.join('; '));
        },
      );
      await fc.assert(property, { numRuns: 500 });
      t.ok(rested > 20, `${rested} of the runs left the device live`);
    },
  );
}
