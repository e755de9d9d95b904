import { dirname } from 'node:path';
import { messageOf } from '../errors.js';
import { ublkDeviceInfo } from '../native/addon/system.js';
import type { Check, CheckResult } from '../supervisor/host/preflight.js';
import { deviceLimit, raiseTo } from '../supervisor/host/device-limit.js';
import type { DeviceStatus } from '../api/status.js';
import { featureFlag } from '../supervisor/host/ublk-features.js';
import { formatSize } from '../units.js';

/** Rings and request buffers of a device with many deep queues. */
const COMFORTABLE_MEMLOCK = 64 * 2 ** 20;
/** What a container has that asked for nothing else. */
const CONTAINER_SHARED_MEMORY = 64 * 2 ** 20;
const SHARED_MEMORY = '/dev/shm';
const CHAR_DEVICES = '/sys/class/ublk-char';

export const memlockCheck: Check = {
  id: 'memlock',
  subject: 'locked memory limit',
  probe: (host) => {
    const soft = /^Max locked memory\s+(\S+)/m.exec(host.readText('/proc/self/limits') ?? '')?.[1] ?? 'unknown';
    if (soft === 'unlimited' || Number(soft) >= COMFORTABLE_MEMLOCK) return { status: 'ok', detail: soft };
    return {
      status: 'warn',
      detail: `${soft} bytes, which counts for processes without CAP_IPC_LOCK`,
      advice: 'ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit',
    };
  },
};

export function runtimeDirCheck(runtimeDir: string): Check {
  return {
    id: 'runtime-dir',
    subject: `runtime directory ${runtimeDir}`,
    probe: (host): CheckResult => {
      const found = host.stat(runtimeDir);
      const place = found ? runtimeDir : dirname(runtimeDir);
      if (found && !found.isDirectory()) {
        return { status: 'fail', detail: 'is not a directory', advice: 'remove it, or give another --runtime-dir' };
      }
      if (!host.writable(place)) {
        return {
          status: 'fail',
          detail: `${place} is not writable`,
          advice: 'run as root, or give another --runtime-dir',
        };
      }
      if (found && (found.mode & 0o002) !== 0) {
        return { status: 'warn', detail: 'writable by everybody', advice: `chmod 0750 ${runtimeDir}` };
      }
      return { status: 'ok', detail: found ? 'present' : 'made at start' };
    },
  };
}

/** `ownIds`: of the devices of the supervisor that runs here; undefined when none does. */
export function devicesCheck(ownIds: ReadonlySet<number> | undefined): Check {
  return {
    id: 'devices',
    subject: 'ublk devices',
    probe: (host) => {
      if (!host.stat(CHAR_DEVICES)) return null;
      const ids = host.list(CHAR_DEVICES).map((name) => Number(name.replace('ublkc', '')));
      const foreign = ids.filter((id) => !ownIds?.has(id)).sort((a, b) => a - b);
      const own = ids.length - foreign.length;
      const summary = `${own} of this supervisor, ${foreign.length} of others`;
      if (foreign.length === 0) return { status: 'ok', detail: summary };
      return {
        status: 'ok',
        detail: `${summary} (${foreign.map(describe).join(', ')})`,
        advice: ownIds ? 'they are left alone' : 'no supervisor answers here, so none counts as its own',
      };
    },
  };
}

export const deviceLimitCheck: Check = {
  id: 'device-limit',
  subject: 'number of ublk devices',
  probe: (host) => {
    const limit = deviceLimit(host);
    if (limit === null) return { status: 'ok', detail: 'not limited by this kernel' };
    const used = host.list(CHAR_DEVICES).length;
    const detail = `${used} of the ${limit} that this kernel takes, those of others included`;
    return used < limit ? { status: 'ok', detail } : { status: 'warn', detail, advice: raiseTo(2 * limit) };
  },
};

export const sharedMemoryCheck: Check = {
  id: 'shared-memory',
  subject: SHARED_MEMORY,
  probe: (host) => {
    const bytes = host.capacity(SHARED_MEMORY);
    if (bytes === undefined) {
      const detail = 'is missing; RAM disks and shared memory of backends are there';
      return {
        status: 'warn',
        detail,
        advice: `run: mkdir -p ${SHARED_MEMORY}; mount -t tmpfs tmpfs ${SHARED_MEMORY}`,
      };
    }
    const detail = `${bytes === Infinity ? 'memory without a limit' : formatSize(bytes)} for RAM disks and shared memory of backends`;
    if (bytes > CONTAINER_SHARED_MEMORY) return { status: 'ok', detail };
    const advice = `run: mount -o remount,size=2G ${SHARED_MEMORY}; or give the container more (docker run --shm-size 2g)`;
    return { status: 'warn', detail, advice };
  },
};

/** `served`: the devices of the supervisor that runs here. */
export function swapCheck(served: readonly Pick<DeviceStatus, 'name' | 'path' | 'backend'>[]): Check {
  return {
    id: 'swap',
    subject: 'swap',
    probe: (host) => {
      const swaps = host.readText('/proc/swaps') ?? '';
      const used = served.filter(({ path }) => path !== null && new RegExp(`^${path}(p[0-9]+)?\\s`, 'm').test(swaps));
      const unsafe = used.filter(({ backend }) => backend !== 'file');
      if (unsafe.length === 0) return { status: 'ok', detail: `on ${used.length} of this supervisor's devices` };
      return {
        status: 'warn',
        detail: `on ${unsafe.map(({ name, backend }) => `device ${name} (${backend})`).join(', ')}`,
        advice: 'what serves it may need the memory that is to be swapped out; use a device on a file or disk',
      };
    },
  };
}

const STATES = ['dead', 'live', 'quiesced', 'failing I/O'];

function describe(id: number): string {
  try {
    const info = ublkDeviceInfo(id);
    if (!info) return `${id}: gone`;
    if ((info.flags & featureFlag('UNPRIVILEGED_DEV')) !== 0n) return `${id}: made without privileges`;
    return `${id}: ${STATES[info.state] ?? 'unknown state'}, pid ${info.ownerPid}`;
  } catch (error) {
    return `${id}: ${messageOf(error)}`;
  }
}
