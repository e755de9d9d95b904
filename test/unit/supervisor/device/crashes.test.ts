import t from 'tap';
import type { OutstandingRequest, Remains, RequestRules } from '../../../../src/supervisor/ublk/kernel.js';
import { liveRig, quiet, type Rig } from './harness.js';

const read = (startSector: number, queue = 0): OutstandingRequest => ({
  operation: 0,
  startSector,
  sectors: 8,
  queue,
  ageMs: 12.34,
});
const abort = { code: null, signal: 'SIGABRT' };
const kill = { code: null, signal: 'SIGKILL' };
/** A hang that says nothing. */
const silent = { overtaken: null };

/** Ends the present generation; with what it had in its backends. */
async function crash(
  { model }: Rig,
  left: Partial<Remains>,
  how: typeof abort | { code: number; signal: null } = abort,
) {
  model.generation.left = left;
  model.generation.exit(0, how);
  await quiet();
}

t.test('a request that every crash has in common is quarantined, and the device stays live', async (t) => {
  const made = await liveRig('7.2', { maxRestarts: 10, poisonAfter: 3 });
  const { device, model } = made;
  const marks: unknown[] = [];
  const spawn = model.spawn.bind(model);
  model.spawn = (granted, spec, number, ...rest: unknown[]) => {
    marks.push((rest[1] as RequestRules).marked);
    return spawn(granted, spec, number);
  };
  for (let crashes = 1; crashes <= 3; crashes += 1) {
    t.strictSame(device.status().quarantine, []);
    await crash(made, { outstanding: [read(8)] });
    t.equal(device.state, 'live');
  }
  const poison = { operation: 0, startSector: 8, sectors: 8 };
  t.strictSame(marks, [[], [{ ...poison, crashes: 2, refused: false }], [{ ...poison, crashes: 3, refused: true }]]);
  const { quarantine, reason, recoveries } = device.status();
  t.strictSame(quarantine, [{ operation: 'read', sector: 8, sectors: 8, crashes: 3 }]);
  t.equal(
    reason,
    'in quarantine, answered with EIO: read of 8 sectors at 8, which caused 3 crashes; ' +
      'ublk-supervisor recover ram0 --clear-quarantine lifts that',
  );
  t.equal(recoveries, 3);
  await device.recover();
  t.equal(device.status().quarantine.length, 1, 'recover alone keeps it');
  await device.recover({ clearQuarantine: true });
  t.equal(model.calls.at(-1), 'unmark');
  t.match(device.status(), { state: 'live', reason: null, quarantine: [] });
  await crash(made, { outstanding: [read(8)] });
  t.strictSame(marks.at(-1), []);
});

t.test('every crash has a report; the pause is known when the device is live again', async (t) => {
  const made = await liveRig('7.2', { auto: false });
  t.equal(made.device.status().lastCrash, null);
  const answered = { read: 5, write: 1, flush: 0, discard: 0, writeZeroes: 0 };
  await crash(made, {
    outstanding: [read(8), { ...read(16, 1), operation: 5, ageMs: 40 }],
    answered,
    lastAnswerMs: 3.21,
  });
  t.match(made.device.status().lastCrash, {
    device: 'ram0',
    backend: 'null',
    generation: 1,
    cause: 'signal',
    exit: { queue: 0, signal: 'SIGABRT' },
    phase: 'fetched',
    inflight: 2,
    requests: [
      { queue: 1, operation: 'writeZeroes', sector: 16, sectors: 8, ageMs: 40 },
      { queue: 0, operation: 'read', sector: 8, sectors: 8, ageMs: 12.3 },
    ],
    answered,
    lastAnswerMs: 3.2,
    quarantined: [],
    pauseMs: null,
    file: null,
  });
  made.clock.time += 1234;
  await made.device.recover();
  t.equal(made.device.status().lastCrash?.pauseMs, 1234);
});

t.test('a report names at most 32 requests, the oldest', async (t) => {
  const made = await liveRig('7.2');
  const outstanding = Array.from({ length: 100 }, (_, index) => ({ ...read(index), ageMs: index }));
  await crash(made, { outstanding });
  const { lastCrash } = made.device.status();
  t.strictSame([lastCrash?.inflight, lastCrash?.requests.length, lastCrash?.requests[0]?.sector], [100, 32, 99]);
});

t.test('the causes', async (t) => {
  const ends = [
    [{ code: null, signal: 'SIGKILL' }, {}, 'killed'],
    [{ code: null, signal: 'SIGKILL' }, { hung: silent }, 'hang'],
    [{ code: null, signal: 'SIGSEGV' }, {}, 'signal'],
    [{ code: 0, signal: null }, {}, 'exit'],
    [{ code: 1, signal: null, reason: 'Error: no' }, {}, 'error'],
    [{ code: null, signal: null }, {}, 'unknown'],
  ] as const;
  for (const [how, left, cause] of ends) {
    const made = await liveRig('7.2');
    made.model.generation.left = left;
    made.model.generation.exit(0, how);
    await quiet();
    t.equal(made.device.status().lastCrash?.cause, cause);
  }
});

t.test('what is asked for is no crash', async (t) => {
  const made = await liveRig('7.2');
  await made.device.stop({ force: false });
  t.equal(made.device.status().lastCrash, null);
});

t.test('kills from outside and deaths before anything was served quarantine nothing', async (t) => {
  const made = await liveRig('7.2', { maxRestarts: 100 });
  for (let kills = 0; kills < 5; kills += 1) await crash(made, { outstanding: [read(8)] }, kill);
  t.strictSame(made.device.status().quarantine, []);
  await crash(made, { outstanding: [read(8)] });
  await crash(made, { outstanding: [read(8)] });
  await crash(made, {});
  await crash(made, { outstanding: [read(8)] });
  t.equal(made.device.status().quarantine.length, 1);
});

t.test('a store that does not answer costs neither a request nor the restarts', async (t) => {
  const made = await liveRig('7.2', { maxRestarts: 3 });
  const flush = { ...read(0, 1), operation: 2, sectors: 0 };
  const left = { hung: silent, outstanding: [read(8, 1), flush], died: [1] };
  for (let hangs = 0; hangs < 30; hangs += 1) await crash(made, left, kill);
  t.match(made.device.status(), { state: 'live', quarantine: [], recoveries: 30 });
});

t.test('a request that hangs while later ones are answered is found', async (t) => {
  const made = await liveRig('7.2');
  const hung = { overtaken: { operation: 0, startSector: 8, sectors: 8 } };
  for (let hangs = 0; hangs < 3; hangs += 1) await crash(made, { hung, outstanding: [read(8, 1)], died: [1] }, kill);
  t.match(made.device.status(), { state: 'live', quarantine: [{ sector: 8, crashes: 3 }] });
});

t.test('status says what is waited for', async (t) => {
  const made = await liveRig('7.2');
  made.model.generation.stalled = 'a flush is unanswered after 75.0 s: the store does not answer';
  t.match(made.device.status(), { state: 'live', reason: /^a flush is unanswered after 75\.0 s/ });
});

t.test('a crash loop without a common request ends at the limit of restarts', async (t) => {
  const made = await liveRig('7.2', { maxRestarts: 4 });
  for (let crashes = 0; crashes < 5; crashes += 1) await crash(made, { outstanding: [read(8 * crashes)] });
  t.match(made.device.status(), { state: 'degraded', quarantine: [], reason: /limit of 4 restarts/ });
});
