import { checkBackend, type CheckResult } from '../../../src/js-backend/conformance/index.js';
import { faults } from './faulty-backend.js';

/**
 * Prints what the conformance suite finds first in every faulty backend, as JSON by fault. A program of its own, because
 * tap's loaders make a worker thread start ten times as slowly.
 */
const found: Record<string, CheckResult | null> = {};
for (const fault of Object.keys(faults)) {
  found[fault] = null;
  const runs = fault === 'a write of six blocks is lost' ? 100 : 1;
  const module = new URL('faulty-backend.js', import.meta.url);
  for await (const result of checkBackend(module, { fault }, { seed: 1, runs, deadlineMs: 3000 })) {
    if (result.outcome !== 'fail') continue;
    found[fault] = result;
    break;
  }
}
process.stdout.write(JSON.stringify(found));
