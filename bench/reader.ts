import assert from 'node:assert/strict';
import { setTimeout } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { DirectFile } from '../src/backend/conformance/direct-file.js';

/** The thread of reading.ts. Says when it begins to measure; told to end, the longest gap in milliseconds. */

/** Reads until V8 has compiled what they take. */
const WARM_UP = 50;

assert.ok(parentPort);
const ended = new AbortController();
parentPort.once('message', () => {
  ended.abort();
});
const file = await DirectFile.openReadOnly(workerData as string);
let longest = 0;
let last = performance.now();
for (let read = 0; !ended.signal.aborted; read++) {
  await file.read(0, 4096);
  const now = performance.now();
  if (read > WARM_UP) longest = Math.max(longest, now - last);
  else if (read === WARM_UP) parentPort.postMessage('reading');
  last = now;
  await setTimeout(1);
}
await file[Symbol.asyncDispose]();
parentPort.postMessage(longest);
