import type { DeviceConfig } from '../config/types.js';
import { messageOf, SupervisorError } from '../errors.js';
import type { Log } from '../log/log.js';
import type { Claim } from './ublk/kernel.js';
import { withSize, type ManagedDevice, type Prepared as PreparedDevice } from './managed-device.js';
import { planOf } from './reload-plan.js';
import type { PlanEntry } from '../api/status.js';

/** What a reload does to the devices of a supervisor. */
export interface Reloadable {
  readonly devices: readonly ManagedDevice[];
  /** Takes its name and opens its backend, no more. */
  open(config: DeviceConfig): Promise<ManagedDevice>;
  start(managed: ManagedDevice): Promise<unknown>;
  /** Keeps everybody from using them until they are removed; rejects, line by line, with who does. */
  claim(devices: readonly ManagedDevice[]): Promise<Claim>;
  /** Keeps the data. */
  remove(managed: ManagedDevice): Promise<void>;
  /** Closes what `open` opened, when the reload is refused. */
  undo(managed: ManagedDevice): Promise<void>;
}

interface ReloadStep {
  readonly entry: PlanEntry;
  readonly carryOut: () => Promise<unknown>;
  readonly undo: () => Promise<void>;
}

/**
 * Makes the devices those of a configuration, or says what that would take (`dryRun`). Everything that may be refused is
 * tried first: new code is loaded, new backends are opened, and who uses a device that is to go is asked. Rejects with
 * `REFUSED`, nothing touched; or with `RELOAD` when a step failed after all, with the others done.
 */
export async function reload(
  target: Reloadable,
  wanted: readonly DeviceConfig[],
  { dryRun, log }: { readonly dryRun: boolean; readonly log: Log },
): Promise<PlanEntry[]> {
  const plan = planOf(
    target.devices.map(({ configured, config: { name }, device }) => ({
      configured,
      name,
      state: device.state,
      size: device.size,
    })),
    wanted,
  );
  if (dryRun) return plan;
  const refused = plan.flatMap(({ reason }) => reason ?? []);
  if (refused.length > 0) throw refusal(refused);
  const { prepared, claim } = await prepareAll(target, plan, wanted);
  const failures: string[] = [];
  for (const { entry, carryOut } of prepared) {
    try {
      await carryOut();
      if (entry.action !== 'keep') log.info({ device: entry.device }, `reload: ${describe(entry)}`);
    } catch (error) {
      failures.push(messageOf(error));
    }
  }
  await claim.release();
  if (failures.length > 0) throw new SupervisorError(failures.join('\n'), { code: 'RELOAD' });
  return plan;
}

/** `change disk: recovery.window` */
function describe({ action, device, changes }: PlanEntry): string {
  return `${action} ${device}${changes.length === 0 ? '' : `: ${changes.join(', ')}`}`;
}

/** In the order in which they are to be carried out: what is removed may be what gives others their room. */
async function prepareAll(
  target: Reloadable,
  plan: readonly PlanEntry[],
  wanted: readonly DeviceConfig[],
): Promise<{ readonly prepared: readonly ReloadStep[]; readonly claim: Claim }> {
  const order = ['remove', 'keep', 'change', 'add', 'refuse'];
  const sorted = [...plan].sort((a, b) => order.indexOf(a.action) - order.indexOf(b.action));
  const going = target.devices.filter(({ config }) =>
    plan.some(({ action, device }) => action === 'remove' && device === config.name),
  );
  const [claim, ...outcomes] = await Promise.allSettled([
    target.claim(going),
    ...sorted.map((entry) =>
      prepare(
        target,
        entry,
        wanted.find(({ name }) => name === entry.device),
      ),
    ),
  ]);
  const failed = [claim, ...outcomes].flatMap((outcome) =>
    outcome.status === 'rejected' ? messageOf(outcome.reason).split('\n') : [],
  );
  const prepared = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? outcome.value : []));
  if (failed.length === 0 && claim.status === 'fulfilled') return { prepared, claim: claim.value };
  await Promise.all(prepared.map(({ undo }) => undo()));
  if (claim.status === 'fulfilled') await claim.value.release();
  throw refusal(failed);
}

async function prepare(target: Reloadable, entry: PlanEntry, wanted: DeviceConfig | undefined): Promise<ReloadStep> {
  const nothing = (): Promise<void> => Promise.resolve();
  if (entry.action === 'add' && wanted !== undefined) {
    const added = await target.open(wanted);
    added.configured = wanted;
    return { entry, carryOut: () => target.start(added), undo: () => target.undo(added) };
  }
  const managed = target.devices.find(({ config }) => config.name === entry.device);
  if (managed === undefined) throw new TypeError(`there is no device ${entry.device} to reload`);
  const { device } = managed;
  if (wanted === undefined) {
    return { entry, carryOut: () => target.remove(managed), undo: nothing };
  }
  const { size } = device;
  const next: PreparedDevice | null =
    entry.action === 'change' ? await managed.prepare(withSize(wanted, size), size) : null;
  const carryOut = async (): Promise<void> => {
    if (next !== null) await managed.handOver(next);
    managed.configured = wanted;
  };
  return { entry, carryOut, undo: nothing };
}

function refusal(reasons: readonly string[]): SupervisorError {
  const message = reasons.map((reason) => `reloading failed: ${reason}`).join('\n');
  return new SupervisorError(`${message}\nnothing was changed`, { code: 'REFUSED' });
}
