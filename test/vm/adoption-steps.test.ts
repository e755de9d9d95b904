// run: full
import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { DirectFile } from '../../src/js-backend/conformance/direct-file.js';
import type { DeviceStatus } from '../../src/api/status.js';
import { RunningSupervisor, assertNothingLeft, processesNamed, root } from './harness.js';

/** A supervisor is killed at each step of a start, a recovery and a stop; test/unit/device-adoption does it in a model. */

const runtimeDir = '/run/adoption';
const CRASH_AT = '/run/crash-at';
const recovery = { maxRestarts: 1000 };
const devices = [
  { name: 'victim', queues: 2, recovery, backend: { type: 'ram', size: '16MiB' } },
  { name: 'bystander', backend: { type: 'ram', size: '1MiB' } },
];
// Not the bundled one, whose classes nothing outside can reach.
const program = join(root, 'dist/src/cli/main.js');
const nodeOptions = ['--import', join(root, 'test/vm/crash-at.js')];
const pattern = Buffer.alloc(4096, 0x5a);

const start = (): Promise<RunningSupervisor> => RunningSupervisor.start(devices, { runtimeDir, program, nodeOptions });
const crashAt = (when: string, step: string): Promise<void> => writeFile(CRASH_AT, `${when} ${step}\n`);
const pids = ({ queues }: DeviceStatus): (number | null)[] => queues.map(({ pid }) => pid);
const statesOf = async (served: RunningSupervisor): Promise<string[]> =>
  (await served.status()).devices.map(({ name, state }) => `${name} ${state}`).sort();
const ALL_LIVE = ['bystander live', 'victim live'];

async function assertData(served: RunningSupervisor): Promise<void> {
  await using file = await DirectFile.open((await served.device('victim')).path ?? assert.fail('no path'));
  assert.ok(pattern.equals(await file.read(4096, 4096)), 'it has other data');
}

test('A5 a supervisor is killed', { timeout: 1_100_000 }, async (t) => {
  let served = await start();
  {
    await using file = await DirectFile.open((await served.device('victim')).path ?? assert.fail('no path'));
    await file.write(4096, pattern);
  }
  const bystander = pids(await served.device('bystander'));
  const provocations = [
    {
      what: 'in a recovery',
      steps: ['killGeneration', 'beginRecovery', 'spawn', 'endRecovery'],
      provoke: async () =>
        process.kill((await served.device('victim')).queues[0]?.pid ?? assert.fail('no process'), 'SIGKILL'),
    },
    {
      what: 'in a stop',
      steps: ['assertUnused', 'stopDevice', 'endGeneration', 'deleteDevice', 'release'],
      provoke: () => served.api('DELETE', '/v1/devices/victim').catch(() => undefined),
    },
  ];
  for (const { what, steps, provoke } of provocations) {
    for (const step of steps) {
      await t.test(`A5 ${what}, ${step}`, async () => {
        for (const when of ['during', 'after']) {
          await crashAt(when, step);
          await provoke();
          await served.exit;
          await rm(CRASH_AT);
          served = await start();
          const at = `${when} ${step}: ${served.log}`;
          assert.deepEqual(await statesOf(served), ALL_LIVE, at);
          await assertData(served);
          assert.deepEqual(pids(await served.device('bystander')), bystander, at);
          assert.equal(processesNamed('ublk/').length, 3, at);
        }
      });
    }
  }
  assert.equal(await served.terminate(), 0);

  for (const step of ['addDevice', 'setParameters', 'spawn', 'startDevice']) {
    await t.test(`A5 in a start, ${step}`, async () => {
      for (const when of ['during', 'after']) {
        await crashAt(when, step);
        await assert.rejects(start(), /the supervisor ended with/);
      }
      await rm(CRASH_AT);
      served = await start();
      assert.deepEqual(await statesOf(served), ALL_LIVE, `${step}: ${served.log}`);
      await assertData(served);
      assert.equal(await served.terminate(), 0);
    });
  }
  await assertNothingLeft(runtimeDir);
});
