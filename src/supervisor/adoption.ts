import { isDeepStrictEqual } from 'node:util';
import type { DeviceConfig } from '../config/types.js';
import { messageOf } from '../errors.js';
import { openPidfd, watchProcess } from '../native/addon/process-watch.js';
import type { Log } from '../log/log.js';
import {
  logicalBlockSizeOf,
  dataPathOf,
  devicesInKernel,
  sizeOf,
  stateOf,
  type UblkDevice,
} from './ublk/ublk-devices.js';
import type { Cookies } from './cookies.js';
import type { Journal, JournalEntry } from './journal.js';
import type { FoundDevice } from './ublk/kernel.js';
import { nameOf } from './host/processes.js';
import { closeHeld, type HeldByZygote } from './zygote/zygote.js';
import type { ZygoteKeeper } from './zygote/zygote-keeper.js';

/** A device that an earlier supervisor of this runtime directory left, or only meant to have. */
export interface LeftDevice {
  /** As it was made, where that is known, else as the configuration has it now. */
  readonly config: DeviceConfig;
  readonly announced: JournalEntry['announced'] | null;
  /** null: the kernel does not have it. */
  readonly found: FoundDevice | null;
}

interface AdoptionOptions {
  readonly cookies: Cookies;
  readonly keeper: ZygoteKeeper;
  readonly journal: Journal;
  readonly log: Log;
  /** Removes a device of ours that is in no journal and cannot be used. */
  readonly deleteDevice: (id: number) => Promise<unknown>;
}

/**
 * What an earlier supervisor left. The kernel says which devices are ours, by their cookies; the zygote, if it is still
 * there, who serves them; the journal what they are. Devices of others are not looked at.
 */
export async function findLeftDevices(
  options: AdoptionOptions,
  configured: readonly DeviceConfig[],
): Promise<readonly LeftDevice[]> {
  const entries = await options.journal.load();
  const held = await adoptZygotes(options);
  try {
    return await leftDevices(options, configured, entries, held);
  } catch (error) {
    // The locks are the zygotes' alone again.
    held.forEach(closeHeld);
    throw error;
  }
}

async function leftDevices(
  options: AdoptionOptions,
  configured: readonly DeviceConfig[],
  entries: ReadonlyMap<string, JournalEntry>,
  held: readonly HeldByZygote[],
): Promise<readonly LeftDevice[]> {
  const { cookies, log } = options;
  // Asked for only now: what the zygote's control processes were doing is done.
  const ours = (await devicesInKernel()).filter(({ cookie }) => cookies.owns(cookie));
  const byCookie = new Map<bigint, UblkDevice[]>();
  for (const device of ours) byCookie.set(device.cookie, [...(byCookie.get(device.cookie) ?? []), device]);
  const heldById = new Map(held.map((generation) => [generation.deviceId, generation]));
  const inConfiguration = new Map(configured.map((config) => [config.name, config]));
  const left: LeftDevice[] = [];
  const known = new Set<UblkDevice>();
  for (const name of new Set([...entries.keys(), ...inConfiguration.keys()])) {
    const entry = entries.get(name);
    const wanted = inConfiguration.get(name);
    const device = deviceOf(byCookie.get(cookies.cookieOf(name)) ?? [], entry);
    if (device !== undefined) known.add(device);
    // What the kernel does not have is made anew, as the configuration has it, or as it was added by hand.
    if (device === undefined && (wanted !== undefined || entry?.added !== true)) continue;
    const config = entry?.config ?? wanted;
    if (config === undefined) continue;
    if (wanted !== undefined && !isDeepStrictEqual(wanted, config)) {
      log.warn({ device: name }, `device ${name} is served as it was added; its configuration is another by now`);
    }
    left.push({
      config,
      announced: entry?.announced ?? null,
      found: device === undefined ? null : await asFound(device, heldById.get(device.id) ?? null),
    });
  }
  for (const device of ours) if (!known.has(device)) await leaveOrDelete(device, options);
  // Killed in the middle of a removal, the supervisor did not get to say that the device is gone.
  const present = new Set(ours.filter((device) => known.has(device) || stateOf(device) !== 'DEAD').map(({ id }) => id));
  for (const generation of held) if (!present.has(generation.deviceId)) await options.keeper.forget(generation);
  return left;
}

/** There are several while a deleted device is still open; then the one that is not dead counts. */
function deviceOf(candidates: readonly UblkDevice[], entry: JournalEntry | undefined): UblkDevice | undefined {
  return (
    candidates.find((device) => stateOf(device) !== 'DEAD') ??
    candidates.find(({ id }) => id === entry?.id) ??
    candidates[0]
  );
}

async function asFound(device: UblkDevice, held: HeldByZygote | null): Promise<FoundDevice> {
  const { id, queues, depth } = device;
  const state = stateOf(device);
  return {
    id,
    state,
    queues,
    depth,
    dataPath: dataPathOf(device),
    size: state === 'DEAD' ? null : await sizeOf(id),
    blockSize: state === 'DEAD' ? null : await logicalBlockSizeOf(id),
    held,
  };
}

/** A zygote that does not answer, or not as one of this build, is ended: its device recovers with another one. */
async function adoptZygotes({ keeper, cookies }: AdoptionOptions): Promise<readonly HeldByZygote[]> {
  const { held, pids } = await keeper.adopt();
  const others = (await devicesInKernel())
    .filter(({ cookie, ownerPid }) => cookies.owns(cookie) && ownerPid > 0 && !pids.includes(ownerPid))
    .map(({ ownerPid }) => ownerPid);
  await Promise.all([...new Set(others)].map(endZygote));
  return held;
}

/** The kernel says that it opened a device of ours; its name, that its number is not somebody else's by now. */
async function endZygote(pid: number): Promise<void> {
  const pidfd = openPidfd(pid);
  if (pidfd === null) return;
  await new Promise<void>((resolve) => {
    const watch = watchProcess(pidfd, resolve);
    if (nameOf(pid) === 'ublk-zygote') watch.kill();
    else resolve();
  });
}

async function leaveOrDelete(device: UblkDevice, { log, deleteDevice }: AdoptionOptions): Promise<void> {
  const { id } = device;
  if (stateOf(device) !== 'DEAD') {
    const what = `ublk device ${id} is of this runtime directory, but neither configuration nor journal name it`;
    log.warn({ id }, `${what}; it is left as it is: add its device to the configuration and start again`);
    return;
  }
  await deleteDevice(id).catch((error: unknown) =>
    log.warn({ id }, `removing ublk device ${id}, which nobody uses, failed: ${messageOf(error)}`),
  );
}
