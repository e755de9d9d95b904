import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import type { DeviceStatus, SupervisorApi } from '../../../src/api/status.js';
import { WholeStatus } from '../../../src/api/whole-status.js';
import { scratch } from '../supervisor/device/status.js';

const device = { ...scratch, name: 'a', reason: 'a reason with \u009b, "quotes" and ä' };

interface Many extends Pick<SupervisorApi, 'supervisorStatus' | 'deviceStatuses'> {
  recoveries: number;
  built: number;
}

/** Devices each of which takes a millisecond to look at. */
function many(count: number): Many {
  return {
    recoveries: 0,
    built: 0,
    supervisorStatus: () => ({ pid: 1, version: '1.2.3', kernel: '7.3.4' }),
    *deviceStatuses() {
      this.built += 1;
      for (let index = 0; index < count; index++) {
        const begun = performance.now();
        while (performance.now() - begun < 1);
        yield { ...device, name: `d${index}`, recoveries: this.recoveries };
      }
    },
  };
}

type Text = Pick<DeviceStatus, 'name' | 'recoveries' | 'reason'>;

function parse(pieces: readonly Buffer[]): { supervisor: { pid: number }; devices: readonly Text[] } {
  return JSON.parse(Buffer.concat(pieces).toString()) as ReturnType<typeof parse>;
}

t.test('the event loop goes on while a status is built', async (t) => {
  let turns = 0;
  const building = { done: false };
  const pieces = new WholeStatus(many(40)).read().finally(() => {
    building.done = true;
  });
  while (!building.done) {
    await turn();
    turns += 1;
  }
  t.ok(turns >= 15, `${turns} turns in 40 ms`);
  const text = Buffer.concat(await pieces).toString();
  t.notMatch(text, /\u009b/, 'harmless to a terminal');
  const { supervisor, devices } = parse(await pieces);
  t.match(supervisor, { pid: 1 });
  t.strictSame(
    devices.map(({ name }) => name),
    Array.from({ length: 40 }, (_, index) => `d${index}`),
  );
  t.equal(devices[0]?.reason, device.reason);
  t.strictSame(parse(await new WholeStatus(many(0)).read()).devices, []);
});

t.test('who asks while a status is built shares the next one, which is no older than his question', async (t) => {
  const api = many(20);
  const status = new WholeStatus(api);
  const first = status.read();
  await turn();
  await turn();
  api.recoveries = 1;
  const later = [status.read(), status.read(), status.read()];
  t.equal(parse(await first).devices[0]?.recoveries, 0);
  for (const one of later) t.equal(parse(await one).devices[0]?.recoveries, 1);
  t.equal(api.built, 2);
});

t.test('however often it is asked for, most of the time is for other things', async (t) => {
  const status = new WholeStatus(many(10));
  const begun = performance.now();
  for (let i = 0; i < 4; i++) await status.read();
  const elapsed = performance.now() - begun;
  t.ok(elapsed > 4 * 10 + 3 * 40, `${Math.round(elapsed)} ms`);
});

t.test('a status that cannot be built is an error to who asked, and to nobody after him', async (t) => {
  const api = many(1);
  const status = new WholeStatus(api);
  const { supervisorStatus } = api;
  api.supervisorStatus = () => {
    throw new TypeError('a bug');
  };
  await t.rejects(status.read(), { message: 'a bug' });
  api.supervisorStatus = supervisorStatus;
  t.equal(parse(await status.read()).devices.length, 1);
});
