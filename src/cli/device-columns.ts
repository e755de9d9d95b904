import { formatSize } from '../units.js';
import type { DeviceStatus } from '../api/status.js';
import type { Column } from './table.js';

export const usualDeviceColumns = ['NAME', 'PATH', 'STATE', 'SIZE', 'BACKEND', 'QUEUES', 'RECOVERIES'] as const;

/** What `list` can show about a device. */
export const deviceColumns: readonly Column<DeviceStatus>[] = [
  { name: 'NAME', description: "the device's name", value: ({ name }) => name },
  { name: 'ID', description: 'N of /dev/ublkbN', value: ({ id }) => id, right: true },
  { name: 'PATH', description: 'the block device', value: ({ path }) => path },
  { name: 'STATE', description: 'live, recovering, ...', value: ({ state }) => state },
  {
    name: 'SIZE',
    description: 'size of the device',
    value: ({ size }) => size,
    text: ({ size }) => formatSize(size),
    right: true,
  },
  { name: 'BACKEND', description: 'what stores the data', value: ({ backend }) => backend },
  { name: 'QUEUES', description: 'number of hardware queues', value: ({ queues }) => queues.length, right: true },
  { name: 'DEPTH', description: 'requests per queue', value: ({ queues }) => queues[0]?.depth ?? null, right: true },
  { name: 'BLOCKSIZE', description: 'logical block size in bytes', value: ({ blockSize }) => blockSize, right: true },
  { name: 'DATAPATH', description: 'how request data reaches the queue processes', value: ({ dataPath }) => dataPath },
  {
    name: 'GENERATION',
    description: 'sets of queue processes so far',
    value: ({ generation }) => generation,
    right: true,
  },
  { name: 'RECOVERIES', description: 'recoveries so far', value: ({ recoveries }) => recoveries, right: true },
  { name: 'PAUSE', description: 'last pause in milliseconds', value: ({ lastPauseMs }) => lastPauseMs, right: true },
  {
    name: 'INFLIGHT',
    description: 'requests in the queue processes',
    value: ({ queues }) => queues.reduce((sum, { inflight }) => sum + inflight, 0),
    right: true,
  },
  { name: 'PIDS', description: 'queue processes', value: ({ queues }) => queues.flatMap(({ pid }) => pid ?? []) },
  { name: 'REASON', description: 'why the device is in this state', value: ({ reason }) => reason },
];
