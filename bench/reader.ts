import assert from 'node:assert/strict';
import { setTimeout } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { DirectFile } from '../src/backend/conformance/direct-file.js';

/** The thread of reading.ts. Says when it begins to measure; told to end, how long the longest read took in milliseconds. */

/** Reads until V8 has compiled what they take. */
const WARM_UP = 50;

assert.ok(parentPort);
const ended = new AbortController();
parentPort.once('message', () => {
  ended.abort();
});
const file = await DirectFile.openReadOnly(workerData as string);
let longest = 0;
for (let read = 0; !ended.signal.aborted; read++) {
  // Not from answer to answer: on a busy machine this thread is late for its own timer.
  const asked = performance.now();
  await file.read(0, 4096);
  if (read > WARM_UP) longest = Math.max(longest, performance.now() - asked);
  else if (read === WARM_UP) parentPort.postMessage('reading');
  await setTimeout(1);
}
await file[Symbol.asyncDispose]();
parentPort.postMessage(longest);
