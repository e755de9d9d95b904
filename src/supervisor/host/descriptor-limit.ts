import { readFileSync } from 'node:fs';
import type { DeviceConfig } from '../../config/types.js';

/** What a supervisor has open whatever it serves, and for a moment. */
const OTHERS = 100;

/**
 * What is wrong with the limit of open files for so many devices, in one line; null: nothing. Node has raised the soft limit
 * to the hard one when it started.
 */
export function descriptorShortage(
  devices: readonly Pick<DeviceConfig, 'queues' | 'backend'>[],
  limits = readFileSync('/proc/self/limits', 'utf8'),
): string | null {
  const limit = Number(/^Max open files +(?<soft>[0-9]+)/m.exec(limits)?.groups?.soft ?? Infinity);
  const needed = devices.reduce((sum, device) => sum + descriptorsOf(device), OTHERS);
  if (needed <= limit) return null;
  const advice = 'raise it (ulimit -n; LimitNOFILE= of a systemd service)';
  return `${devices.length} devices need ${needed} open files, and the limit is ${limit}; ${advice}`;
}

/** The zygote's socket and pidfd, the shared page, a pidfd for each queue; the store, or a channel for each queue. */
function descriptorsOf({ queues, backend }: Pick<DeviceConfig, 'queues' | 'backend'>): number {
  return 3 + queues + (backend.type === 'module' ? queues : 1);
}
