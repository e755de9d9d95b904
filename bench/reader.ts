import assert from 'node:assert/strict';
import { closeSync, constants, openSync, readSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { takeSlot } from '../src/js-backend/conformance/direct-file.js';

/** The thread of reading.ts. Says when it begins to measure; told to end, how long the longest read took in milliseconds. */

/** Reads until V8 has compiled what they take. */
const WARM_UP = 50;
const BLOCK = 4096;

assert.ok(parentPort);
const ended = new AbortController();
parentPort.once('message', () => ended.abort());
const memory = takeSlot();
const file = openSync(workerData as string, constants.O_RDONLY | constants.O_DIRECT);
let longest = 0;
for (let read = 0; !ended.signal.aborted; read++) {
  // The system call alone: on a busy machine this thread is late for its timer, and its garbage collector waits for others.
  const asked = performance.now();
  assert.equal(readSync(file, memory, 0, BLOCK, 0), BLOCK);
  if (read > WARM_UP) longest = Math.max(longest, performance.now() - asked);
  else if (read === WARM_UP) parentPort.postMessage('reading');
  await setTimeout(1);
}
closeSync(file);
parentPort.postMessage(longest);
