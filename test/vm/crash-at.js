// Preloaded into a supervisor (node --import), this kills it at a step of a device: /run/crash-at has a line `WHEN STEP`,
// with `before`, `during` (what the step asks for is under way) or `after`. It is looked at again at every step.
import { readFileSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { KernelDevice } from '../../dist/src/supervisor/device/kernel-device.js';

function wanted() {
  try {
    return readFileSync('/run/crash-at', 'utf8').trim().split(' ');
  } catch {
    return [];
  }
}

const die = () => process.kill(process.pid, 'SIGKILL');
const { run } = KernelDevice.prototype;

KernelDevice.prototype.run = async function (step, context) {
  const [when, at] = wanted();
  if (step !== at) return run.call(this, step, context);
  if (when === 'before') die();
  const done = run.call(this, step, context);
  if (when === 'during') await setImmediate().then(die);
  await done;
  die();
};
