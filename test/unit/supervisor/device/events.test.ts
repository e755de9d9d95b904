import t from 'tap';
import { faultsOf, liveRig, outcomeOf, quiet, rig, type Rig } from './harness.js';
import { kernelVersions, type KernelVersion } from './model-device.js';
import type { Moment } from './model-kernel.js';

/** Stops the world at a moment, so that an event arrives in the middle of it; call the result to go on. */
function hold({ model }: Rig, moment: Moment, nth = 1): () => void {
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  model.at(moment, nth, () => held);
  return release;
}

interface Held extends Rig {
  readonly release: () => void;
}

async function heldAt(version: KernelVersion, moment: Moment, act: (made: Rig) => void): Promise<Held> {
  const made = moment.startsWith('endRecovery') || moment === 'beginRecovery' ? await liveRig(version) : rig(version);
  const release = hold(made, moment);
  act(made);
  await quiet();
  return { ...made, release };
}

const start = ({ device }: Rig): void => void outcomeOf(device.start());
const crash = ({ model }: Rig): void => model.generation.exit(0);

async function held(version: KernelVersion, state: string): Promise<Held> {
  const none = (): void => undefined;
  const live = async (): Promise<Held> => ({ ...(await liveRig(version)), release: none });
  switch (state) {
    case 'adding':
      return heldAt(version, 'addDevice', start);
    case 'starting':
      return heldAt(version, 'startDevice:fetching', start);
    case 'recovering':
      return heldAt(version, 'endRecovery:preparing', crash);
    case 'live':
      return live();
    case 'draining':
    case 'stopping': {
      const made = await live();
      const release = hold(made, state === 'draining' ? 'claim' : 'stopDevice');
      outcomeOf(made.device.stop({ force: false }));
      await quiet();
      return { ...made, release };
    }
    case 'degraded': {
      const made: Held = { ...(await liveRig(version, { auto: false })), release: none };
      crash(made);
      await quiet();
      return made;
    }
    case 'failed': {
      const made: Held = { ...rig(version), release: none };
      made.model.fail('setParameters', 1, 'EINVAL');
      outcomeOf(made.device.start());
      await quiet();
      return made;
    }
    default: {
      const made = await live();
      await made.device.stop({ force: false });
      return made;
    }
  }
}

const happenings = {
  stop: ({ device }) => device.stop({ force: false }),
  'stop in use': ({ device, model }) => {
    for (const each of model.devices.values()) each.open = true;
    return device.stop({ force: false });
  },
  'stop, forced in use': ({ device, model }) => {
    for (const each of model.devices.values()) each.open = true;
    return device.stop({ force: true });
  },
  recover: ({ device }) => device.recover(),
  exit: ({ model }) => {
    model.devices.get(0)?.generations.at(-1)?.exit(1);
    return Promise.resolve();
  },
} satisfies Record<string, (made: Held) => Promise<void>>;

/** What a request in a state comes to, and where the device rests then. */
const table: Record<string, Record<keyof typeof happenings, string>> = {
  adding: {
    stop: 'done, gone',
    'stop in use': 'done, gone',
    'stop, forced in use': 'done, gone',
    recover: 'done, live',
    exit: 'done, live',
  },
  starting: {
    stop: 'done, gone',
    'stop in use': 'done, gone',
    'stop, forced in use': 'done, gone',
    recover: 'done, live',
    exit: 'done, live',
  },
  live: {
    stop: 'done, gone',
    'stop in use': 'IN_USE, live',
    'stop, forced in use': 'done, gone',
    recover: 'done, live',
    exit: 'done, live',
  },
  draining: {
    stop: 'done, gone',
    'stop in use': 'IN_USE, live',
    'stop, forced in use': 'done, gone',
    recover: 'STOPPED, gone',
    exit: 'done, gone',
  },
  recovering: {
    stop: 'done, gone',
    'stop in use': 'IN_USE, live',
    'stop, forced in use': 'done, gone',
    recover: 'done, live',
    exit: 'done, live',
  },
  degraded: {
    stop: 'done, gone',
    'stop in use': 'IN_USE, degraded',
    'stop, forced in use': 'done, gone',
    recover: 'done, live',
    exit: 'done, degraded',
  },
  failed: {
    stop: 'done, gone',
    'stop in use': 'done, gone',
    'stop, forced in use': 'done, gone',
    recover: 'done, live',
    exit: 'done, failed',
  },
  stopping: {
    stop: 'done, gone',
    'stop in use': 'done, gone',
    'stop, forced in use': 'done, gone',
    recover: 'STOPPED, gone',
    exit: 'done, gone',
  },
  gone: {
    stop: 'done, gone',
    'stop in use': 'done, gone',
    'stop, forced in use': 'done, gone',
    recover: 'STOPPED, gone',
    exit: 'done, gone',
  },
};

/** TRY_STOP_DEV refuses at the last moment; kernels without it stop, because the check came before. */
function expected(version: KernelVersion, state: string, happening: keyof typeof happenings): string | undefined {
  if (version === '7.2' && state === 'stopping' && happening === 'stop in use') return 'IN_USE, live';
  return table[state]?.[happening];
}

for (const version of kernelVersions) {
  t.test(`${version}: each event in each state has its result`, async (t) => {
    for (const state of Object.keys(table)) {
      for (const [happening, act] of Object.entries(happenings)) {
        const made = await held(version, state);
        t.equal(made.device.state, state);
        const outcome = outcomeOf(act(made));
        await quiet();
        made.release();
        await quiet();
        const name = `${happening} while ${state}`;
        const want = expected(version, state, happening as keyof typeof happenings);
        t.equal(`${outcome.result}, ${made.device.state}`, want, name);
        t.strictSame(faultsOf(made), [], name);
      }
    }
  });
}

t.test('a queue process that dies while a stop drains is replaced, then the stop goes on', async (t) => {
  const made = await liveRig('7.2');
  made.model.at('claim', 1, () => made.model.generation.exit(0));
  await made.device.stop({ force: false });
  t.strictSame(made.states.slice(2), ['draining', 'recovering', 'live', 'draining', 'stopping', 'gone']);
  t.strictSame(faultsOf(made), []);
});

t.test('a queue process that dies while a stop is refused is replaced', async (t) => {
  const made = await liveRig('7.2');
  made.model.only.open = true;
  made.model.at('claim', 1, () => made.model.generation.exit(0));
  await t.rejects(made.device.stop({ force: false }), { code: 'IN_USE' });
  await quiet();
  t.match(made.device.status(), { state: 'live', reason: null, recoveries: 1 });
  t.strictSame(faultsOf(made), []);
});

t.test('a stop waits for the replacement that is fetching', async (t) => {
  for (const version of kernelVersions) {
    const made = await heldAt(version, 'endRecovery:fetching', crash);
    const stop = outcomeOf(made.device.stop({ force: true }));
    await quiet();
    t.strictSame([stop.result, made.device.state, made.model.liveProcesses], ['pending', 'recovering', 2]);
    made.release();
    await quiet();
    t.strictSame([stop.result, made.device.state, faultsOf(made)], ['done', 'gone', []]);
  }
});

t.test('requests of every kind at once are all settled', async (t) => {
  for (const version of kernelVersions) {
    for (const state of Object.keys(table)) {
      const made = await held(version, state);
      const { device, model } = made;
      const requests = [
        device.recover(),
        device.stop({ force: false }),
        device.recover(),
        device.stop({ force: true }),
        device.stop({ force: false }),
      ].map((request) => outcomeOf(request));
      model.devices.get(0)?.generations.at(-1)?.exit(0);
      made.release();
      await quiet();
      const results = requests.map(({ result }) => result);
      t.strictSame([results[1], results[3], results[4], device.state], ['done', 'done', 'done', 'gone'], state);
      t.equal(results[2], 'STOPPED', state);
      t.not(results[0], 'pending', state);
      t.strictSame(faultsOf(made), [], state);
    }
  }
});
