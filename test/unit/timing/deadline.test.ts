import { once } from 'node:events';
import { MessageChannel } from 'node:worker_threads';
import t from 'tap';
import { within } from '../../../src/timing/deadline.js';

/** As a supervisor is that sees many devices die at once. */
function beBusy(ms: number): void {
  for (const end = performance.now() + ms; performance.now() < end;);
}

t.test('an answer that came while the loop was busy was in time', async (t) => {
  const { port1, port2 } = new MessageChannel();
  t.teardown(() => port1.close());
  const answered = within('asking', 20, once(port1, 'message'));
  port2.postMessage('here');
  beBusy(60);
  t.strictSame(await answered, ['here']);
});

t.test('no answer is none, however busy the loop was', async (t) => {
  const answered = within('asking', 20, new Promise(() => undefined));
  beBusy(60);
  await t.rejects(answered, { code: 'TIMEOUT', message: 'asking failed: it takes longer than 0.02 s' });
});
