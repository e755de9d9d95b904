import { setImmediate } from 'node:timers/promises';
import t from 'tap';
import type { BackendInstance } from '../../../src/js-backend/define.js';
import type { JsQueue } from '../../../src/native/addon/js-queue.js';
import { Dispatcher } from '../../../src/queue-proc/dispatch.js';

const DEPTH = 2;
const BLOCK = 512;

/** A dispatcher of such reads, and the answers that it gave, as [tag, result]. */
function dispatcher(read: () => unknown) {
  const answered: (readonly [tag: number, result: number])[] = [];
  const errors: unknown[] = [];
  const queue: JsQueue = {
    buffers: new ArrayBuffer(DEPTH * BLOCK),
    requests: new Int32Array(3 * DEPTH),
    offsets: new Float64Array(DEPTH),
    answers: new Int32Array(2 * DEPTH),
    progress: new Int32Array(1),
    start: () => undefined,
    answer: (count) => {
      for (let i = 0; i < count; i++) answered.push([queue.answers[2 * i] ?? -1, queue.answers[2 * i + 1] ?? 0]);
    },
  };
  const onError = (error: unknown): void => void errors.push(error);
  const made = new Dispatcher({
    instance: { size: DEPTH * BLOCK, read: read as BackendInstance['read'] },
    queue,
    depth: DEPTH,
    onError,
  });
  const request = (tag: number): void => {
    queue.requests.set([tag, 0, BLOCK]);
    made.batch(1);
  };
  return { request, answered, errors };
}

t.test(
  'a promise of another library answers once, though it settles again when its tag has another request',
  async (t) => {
    let settle: ((value: number) => void) | undefined;
    const { request, answered, errors } = dispatcher(() => ({
      then: (onFulfilled: (value: number) => void) => {
        settle ??= onFulfilled;
        onFulfilled(BLOCK);
      },
    }));
    request(1);
    await setImmediate();
    await setImmediate();
    t.strictSame(answered, [[1, BLOCK]]);
    request(1);
    settle?.(0);
    await setImmediate();
    await setImmediate();
    t.strictSame(
      [answered, errors],
      [
        [
          [1, BLOCK],
          [1, BLOCK],
        ],
        [],
      ],
    );
  },
);

t.test('a promise that throws when it is looked at fails its request alone', async (t) => {
  const { request, answered, errors } = dispatcher(() => ({
    then: () => {
      throw new TypeError('no');
    },
  }));
  request(0);
  await setImmediate();
  await setImmediate();
  t.match([answered, errors], [[[0, -5]], [{ message: 'no' }]]);
});
