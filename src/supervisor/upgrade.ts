import { failureOf, SupervisorError } from '../errors.js';
import { machine } from './device/machine.js';
import type { ManagedDevice } from './managed-device.js';
import type { Successor } from './zygote/zygote-keeper.js';

interface UpgradeTarget {
  /** Also gives those that are added while the upgrade is under way. */
  readonly devices: Iterable<ManagedDevice>;
  readonly has: (managed: ManagedDevice) => boolean;
  /** A nursery of the native code that is installed now. */
  readonly startSuccessor: () => Promise<Successor>;
}

/** Hands every device over to the native code that is installed now. When one does not work on it, it and those after it stay. */
export async function upgrade({ devices, has, startSuccessor }: UpgradeTarget): Promise<void> {
  const successor = await startOne(startSuccessor);
  try {
    for (const managed of devices) await upgradeOne(managed, successor, () => has(managed));
  } catch (error) {
    successor.discard();
    throw error;
  }
  successor.accept();
}

async function startOne(startSuccessor: () => Promise<Successor>): Promise<Successor> {
  try {
    return await startSuccessor();
  } catch (error) {
    const { code, message } = failureOf(error, 'starting a zygote');
    const advice = 'if another version was installed, ublk-supervisor upgrade --self comes first';
    throw new SupervisorError(`upgrading failed: ${message}; ${advice}`, { code, cause: error });
  }
}

/** A device that is not served is left alone: its next generation is of the new code anyway. */
async function upgradeOne(managed: ManagedDevice, { nursery }: Successor, isThere: () => boolean): Promise<void> {
  const isServed = (): boolean => isThere() && machine[managed.device.state].served;
  if (!isServed()) return;
  try {
    await managed.restart(nursery);
  } catch (error) {
    if (!isServed()) return;
    const { name } = managed.config;
    const { code, message } = failureOf(error, `restarting device ${name}`);
    const others = `${name} and the devices after it are served by the code before`;
    throw new SupervisorError(`upgrading failed: ${message}; ${others}`, { code, device: name, cause: error });
  }
}
