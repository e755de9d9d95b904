// run: full
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { ok, shell } from './harness.js';
import { assertUnharmed, startStores, use } from './outage.js';

/** Stores that do not answer for minutes. */

const OUTAGE_MS = 300_000;
/** Of who waits meanwhile, and for what is recovered afterwards. */
const timeoutMs = 2 * OUTAGE_MS;

test('five minutes without a store', { timeout: 1_100_000 }, async () => {
  // That somebody waits for so long is worth a warning of the kernel's; here it is what is wanted.
  await shell('echo 0 > /proc/sys/kernel/hung_task_timeout_secs');
  const { served, server, stopsAnswering, answers, end } = await startStores();
  const [stored, asking] = [await served.device('stored'), await served.device('asking')];
  const [pathOfStored, pathOfAsking] = [stored.path ?? assert.fail(), asking.path ?? assert.fail()];
  await stopsAnswering();
  server.kill('SIGSTOP');
  const using = Promise.all([
    use(pathOfStored, { discard: true, timeoutMs }),
    use(pathOfAsking, { discard: false, timeoutMs }),
  ]);
  await setTimeout(OUTAGE_MS);
  const { generation, recoveries } = await served.device('stored');
  assert.deepEqual([generation, recoveries], [1, 0], served.log);
  server.kill('SIGCONT');
  await answers();
  const [native, javascript] = await using;
  assertUnharmed(native, await served.untilLive('stored', 0, 120_000));
  assertUnharmed(javascript, await served.untilLive('asking', 0, 120_000));
  // Nothing is refused afterwards either.
  for (const path of [pathOfStored, pathOfAsking]) {
    await ok('dd', ['if=/dev/zero', `of=${path}`, 'bs=64k', 'count=4', 'conv=fsync', 'status=none']);
    await ok('dd', [`if=${path}`, 'of=/dev/null', 'bs=64k', 'count=4', 'iflag=direct', 'status=none']);
  }
  await end();
});
