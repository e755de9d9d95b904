import type { DeviceStatus, QueueStatus, Status } from '../../../../src/api/status.js';

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
  faults: null,
  lastPauseMs: null,
  queues: [],
};

const operation = { count: 7, bytes: 28_672, errors: 1, p50us: 10, p99us: 90 };

function queue(index: number): QueueStatus {
  return {
    index,
    pid: 100 + index,
    depth: 128,
    inflight: 1,
    read: operation,
    write: operation,
    flush: operation,
    discard: operation,
    writeZeroes: operation,
  };
}

const lastExit = {
  queue: 1,
  pid: 99,
  code: null,
  signal: 'SIGKILL',
  reason: null,
  stack: null,
  at: '2026-01-01T00:00:00.000Z',
};

const quarantined = { operation: 'read', sector: 8, sectors: 1, crashes: 3 };

/** Of a device to which everything has happened. */
export const eventful: DeviceStatus = {
  ...scratch,
  id: 3,
  path: '/dev/ublkb3',
  size: 512 * 2 ** 20,
  choices: [{ what: 'blockSize', value: 4096, why: 'the data is new' }],
  generation: 2,
  recoveries: 1,
  lastExit,
  lastCrash: {
    device: 'scratch',
    backend: 'ram',
    generation: 1,
    cause: 'signal',
    exit: lastExit,
    phase: 'fetched',
    inflight: 2,
    requests: [{ queue: 1, operation: 'writeZeroes', sector: 16, sectors: 8, ageMs: 12.4 }],
    answered: { read: 5, write: 4, flush: 3, discard: 2, writeZeroes: 1 },
    lastAnswerMs: 0.5,
    quarantined: [quarantined],
    oomKills: 0,
    pauseMs: 93.4,
    file: '/var/lib/ublk-supervisor/crashes/20260101T000000000Z-scratch-1.json',
  },
  quarantine: [quarantined],
  lastBackendError: {
    queue: 1,
    request: { operation: 'write', sector: 64, sectors: 8 },
    message: 'Error: no such luck',
    stack: '',
    at: '2026-01-01T00:00:00.000Z',
  },
  lastPauseMs: 93.4,
  queues: [queue(0), queue(1)],
};

export const status: Status = { supervisor: { pid: 42, version: '0.1.0', kernel: '6.12.0' }, devices: [eventful] };
