import type { DeviceStatus } from '../../src/supervisor/status.js';

/** Of a device that is live. */
export const scratch: DeviceStatus = {
  name: 'scratch',
  id: 0,
  path: '/dev/ublkb0',
  state: 'live',
  reason: null,
  backend: 'ram',
  size: 2 ** 20,
  blockSize: 4096,
  dataPath: 'copy',
  choices: [],
  generation: 1,
  recoveries: 0,
  lastExit: null,
  lastCrash: null,
  quarantine: [],
  lastBackendError: null,
  lastPauseMs: null,
  queues: [],
};
