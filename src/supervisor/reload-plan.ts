import { machine } from './device/machine.js';
import type { DeviceConfig } from '../config/types.js';
import type { DeviceState, PlanEntry } from '../api/status.js';

/** What a device is now. */
export interface Running {
  /** What the configuration file said of it when it was read last; null: it was added by hand and is not the file's. */
  readonly configured: DeviceConfig | null;
  readonly name: string;
  readonly state: DeviceState;
  /** Bytes, as the kernel has them: the device may have been resized. */
  readonly size: number;
}

type Value = string | number | boolean | undefined;

/** What can change while a device is served; everything else the kernel, or the data, was fixed with. */
export const CHANGEABLE: ReadonlySet<string> = new Set([
  'partitions',
  'requestTimeout',
  'recovery.auto',
  'recovery.maxRestarts',
  'recovery.window',
  'recovery.onGiveUp',
]);

/** What makes the running devices those of the configuration; `refuse` in one entry means that none is to be carried out. */
export function planOf(running: readonly Running[], wanted: readonly DeviceConfig[]): PlanEntry[] {
  const byName = new Map(running.map((device) => [device.name, device]));
  const names = new Set(wanted.map(({ name }) => name));
  const removed = running.filter(({ name, configured }) => configured !== null && !names.has(name));
  return [
    ...wanted.map((config) => entryOf(byName.get(config.name), config)),
    ...removed.map(({ name }): PlanEntry => ({ device: name, action: 'remove', changes: [], reason: null })),
  ];
}

function entryOf(now: Running | undefined, wanted: DeviceConfig): PlanEntry {
  const { name: device } = wanted;
  const entry = (action: PlanEntry['action'], changes: readonly string[], reason: string | null = null): PlanEntry => ({
    device,
    action,
    changes,
    reason,
  });
  if (now === undefined) return entry('add', []);
  const { configured, state, size } = now;
  if (configured === null)
    return entry('refuse', [], `a device ${device} was added by hand; del or rename one of them`);
  const changes = differences(configured, wanted).filter(
    (path) => path !== 'backend.size' || isModule(wanted) || configuredSize(wanted) !== size,
  );
  if (changes.length === 0) return entry('keep', []);
  const fixed = changes.filter((path) => !CHANGEABLE.has(path) && !(isModule(wanted) && isOption(path)));
  if (fixed.length > 0) {
    const advice = fixed.includes('backend.size') ? 'resize changes the size; for others ' : '';
    return entry(
      'refuse',
      changes,
      `${fixed.join(', ')} cannot change while device ${device} is served; ${advice}stop ${device}, then reload`,
    );
  }
  if (machine[state].on.handOver === 'later') {
    return entry('refuse', changes, `device ${device} is ${state}; recover it or stop it, then reload`);
  }
  return entry('change', changes);
}

/** Where two configurations differ. */
function differences(a: DeviceConfig, b: DeviceConfig): string[] {
  const left = flat(a);
  const right = flat(b);
  const paths = [...new Set([...left.keys(), ...right.keys()])];
  return paths.filter((path) => left.get(path) !== right.get(path));
}

function flat(config: DeviceConfig): Map<string, Value> {
  const { requestTimeoutMs, backend, recovery, ...device } = config;
  const { windowMs, ...policy } = recovery;
  const { type, ...rest } =
    backend.type === 'module' ? { type: backend.path, directory: backend.directory, ...backend.options } : backend;
  return new Map<string, Value>([
    ...entries('', device),
    ['requestTimeout', requestTimeoutMs],
    ['backend.type', type],
    ...entries('backend.', rest),
    ...entries('recovery.', policy),
    ['recovery.window', windowMs],
  ]);
}

function entries(prefix: string, values: Readonly<Record<string, unknown>>): [string, Value][] {
  return Object.entries(values).map(([key, value]) => [prefix + key, comparable(value)]);
}

/** Options of a module may be anything that JSON can say. */
function comparable(value: unknown): Value {
  return typeof value === 'object' && value !== null ? JSON.stringify(value) : (value as Value);
}

function isModule({ backend }: DeviceConfig): boolean {
  return backend.type === 'module';
}

function isOption(path: string): boolean {
  return path.startsWith('backend.') && path !== 'backend.type';
}

export function configuredSize({ backend }: DeviceConfig): number | undefined {
  return 'size' in backend ? backend.size : undefined;
}
