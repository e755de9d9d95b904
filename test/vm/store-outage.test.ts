// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DeviceStatus } from '../../src/api/status.js';
import { waitFor } from './harness.js';
import { assertUnharmed, startStores, use } from './outage.js';

/** Stores that stop answering for longer than any time-out: their users wait, and that is all. */

/** Ample for queue processes that boot node on a busy emulated machine. */
const RECOVERY_TIMEOUT_MS = 120_000;
/** Beyond `maxRestarts` and `poisonAfter`. */
const MANY = 4;

test('stores that do not answer', { timeout: 500_000 }, async (t) => {
  const { served, server, stopsAnswering, answers, end } = await startStores();
  const pathOf = ({ path }: DeviceStatus): string => path ?? assert.fail(served.log);

  await t.test('A11 a native backend waits, with the same processes', async () => {
    const before = await served.device('stored');
    await stopsAnswering();
    const using = use(pathOf(before), { discard: true });
    // Five time-outs of a second each.
    const waiting = /^a .* is unanswered after ([5-9]|[0-9]{2,})\.[0-9] s: the store does not answer$/;
    await waitFor('status saying so', async () => waiting.test((await served.device('stored')).reason ?? ''));
    const { state, generation } = await served.device('stored');
    assert.deepEqual([state, generation], ['live', 1], served.log);
    await answers();
    const finished = await using;
    const after = await waitFor('nothing being waited for', async () => {
      const device = await served.device('stored');
      return device.reason === null && device;
    });
    assertUnharmed(finished, after);
    assert.deepEqual([after.generation, after.queues[0]?.pid], [1, before.queues[0]?.pid]);
    await served.logs(/the store does not answer; it is waited for/);
  });

  await t.test('A11 a native backend that is killed meanwhile comes back when its store does', async () => {
    const before = await served.device('stored');
    await stopsAnswering();
    const using = use(pathOf(before), { discard: true });
    await waitFor('requests waiting', async () => ((await served.device('stored')).queues[0]?.inflight ?? 0) >= 3);
    process.kill(before.queues[0]?.pid ?? assert.fail(), 'SIGKILL');
    await waitFor(
      'the device being degraded',
      async () => (await served.device('stored')).state === 'degraded',
      RECOVERY_TIMEOUT_MS,
    );
    await answers();
    const finished = await using;
    assertUnharmed(finished, await served.untilLive('stored', 1, RECOVERY_TIMEOUT_MS));
  });

  await t.test('A11 a backend in JavaScript is replaced as often as it takes', async () => {
    server.kill('SIGSTOP');
    const using = use(pathOf(await served.device('asking')), { discard: false });
    await served.untilLive('asking', MANY, RECOVERY_TIMEOUT_MS);
    const { lastExit } = await served.device('asking');
    assert.match(
      lastExit?.reason ?? '',
      /^a .* is unanswered after .* s(, and nothing else was answered|: it computes)/,
    );
    server.kill('SIGCONT');
    const finished = await using;
    assertUnharmed(finished, await served.untilLive('asking', MANY, RECOVERY_TIMEOUT_MS));
  });

  await end();
});
