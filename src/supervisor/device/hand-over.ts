import type { OpenBackend } from '../../../backends/interface.js';
import type { DeviceConfig } from '../../config/types.js';
import { SupervisorError } from '../../errors.js';
import type { DeviceSpec } from '../ublk/kernel.js';

/** What a device serves: its configuration, the backend that is open for it, and the native code. */
export interface Served {
  readonly config: DeviceConfig;
  readonly backend: OpenBackend;
  /** The nursery whose native code serves, as in `DeviceSpec`; null: that of new devices. */
  readonly nursery: number | null;
}

export interface HandOver extends Served {
  readonly spec: DeviceSpec;
  /** Shrink the device even while it is in use. */
  readonly force: boolean;
}

/**
 * Throws `REFUSED` when `next` is not the device that the kernel and its users know: what they were told when it was made
 * stays. Only the size can change, by a command of its own.
 */
export function assertSameDevice(now: DeviceSpec, next: DeviceSpec): void {
  const differences = [...differing(told(now), told(next)), ...differing<boolean>({ ...now.facts }, { ...next.facts })];
  if (differences.length === 0) return;
  throw new SupervisorError(
    `handing device ${now.name} over failed: ${differences.join(', ')}, which cannot change while it is served; ` +
      'stop the device and add it anew',
    { code: 'REFUSED', device: now.name },
  );
}

function told({ queues, depth, blockSize, dataPath, recovery, backend }: DeviceSpec): Record<string, string | number> {
  // A module may be another file: its path can be a link that an upgrade turned elsewhere.
  const type = backend.module === null ? backend.name : 'a module';
  return { queues, depth, blockSize, dataPath, 'recovery.mode': recovery, backend: type };
}

function differing<Value extends string | number | boolean>(
  now: Readonly<Record<string, Value>>,
  next: Readonly<Record<string, Value>>,
): string[] {
  return Object.keys(now)
    .filter((key) => now[key] !== next[key])
    .map((key) => `${key} would be ${String(next[key])} and is ${String(now[key])}`);
}
