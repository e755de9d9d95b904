import assert from 'node:assert/strict';
import type { DeviceStatus } from '../../src/api/status.js';
import { hasEnded, RunningSupervisor, waitFor, signal } from './harness.js';

/** A device of the configuration. */
interface Configured {
  readonly name: string;
  readonly requestTimeout?: string;
  readonly backend: { readonly type: string; readonly path?: string; readonly size?: number };
}

type Sized = Configured & { readonly backend: { readonly size: number } };

/** Where the file of the file backend and the module of the other one are to be. */
export const STORE = '/mnt/store';
export const MODULE = '/run/backends/soak.mjs';

const MIB = 2 ** 20;
const hurt = { requestTimeout: '3s', recovery: { maxRestarts: 10_000 } };
const witness = { name: 'witness', backend: { type: 'ram', size: 16 * MIB } };
const ram = { name: 'ram', queues: 2, depth: 64, ...hurt, backend: { type: 'ram', size: 16 * MIB } };
const file = { name: 'file', queues: 2, ...hurt, backend: { type: 'file', path: `${STORE}/file`, size: 32 * MIB } };
const script = { name: 'script', ...hurt, backend: { type: MODULE } };

export const pidsOf = ({ queues }: DeviceStatus): number[] => queues.flatMap(({ pid }) => pid ?? []);

/** The devices of a soak, with the supervisor that they have at the moment. */
export class Soak {
  /** Names of the devices that may suffer: all but the witness. */
  readonly victims: readonly string[] = [ram, file, script].map(({ name }) => name);
  /** Of them, the ones with a backend of soak-backend.js. */
  readonly scripts: readonly string[] = [script.name];
  /** Those that take another size, as they were first. */
  readonly resizable: readonly Sized[] = [ram, file];
  /** Rejects when a supervisor ends that was not to be replaced. */
  readonly failed: Promise<never>;
  #fail: (error: Error) => void = () => undefined;
  #configured: readonly Configured[];
  #served: RunningSupervisor;
  /** Those that were replaced. */
  readonly #earlier = new Set<RunningSupervisor>();
  readonly #earlierRecoveries = new Map<string, number>();

  private constructor(configured: readonly Configured[], served: RunningSupervisor) {
    this.failed = new Promise((_resolve, reject) => {
      this.#fail = reject;
    });
    this.failed.catch(() => undefined);
    this.#configured = configured;
    this.#served = served;
    this.#watch(served);
  }

  static async start(): Promise<Soak> {
    const configured = [witness, ram, file, script];
    return new Soak(configured, await RunningSupervisor.start(configured));
  }

  get served(): RunningSupervisor {
    return this.#served;
  }

  /** What every supervisor logged. */
  get log(): string {
    return [...this.#earlier, this.#served].map(({ log }) => log).join('');
  }

  /** How often each device recovered, under whichever supervisor: `witness 0, ram 12`. */
  async recoveries(): Promise<string> {
    const { devices } = await this.#served.status();
    return devices
      .map(({ name, recoveries }) => `${name} ${recoveries + (this.#earlierRecoveries.get(name) ?? 0)}`)
      .join(', ');
  }

  /** Changes a device in the configuration, which this supervisor may reload and the next one begins with. */
  async configure(name: string, change: Partial<Configured>): Promise<void> {
    this.#configured = this.#configured.map((device) => (device.name === name ? { ...device, ...change } : device));
    await this.#served.configure(this.#configured);
  }

  /** SIGKILL to the supervisor, and to zygotes with it, who take their queue processes along; a new one goes on. */
  async replaceSupervisor(zygotes: readonly number[] = []): Promise<void> {
    const killed = this.#served;
    const before = (await killed.status()).devices;
    this.#earlier.add(killed);
    for (const pid of [killed.pid, ...zygotes]) signal(pid, 'SIGKILL');
    await killed.exit;
    await waitFor('everybody who was killed being gone', () => zygotes.every(hasEnded));
    const living = before.filter((device) => device.state === 'live' && !pidsOf(device).some(hasEnded));
    const spared = zygotes.length === 0 ? living : [];
    this.#served = await RunningSupervisor.start(this.#configured, { runtimeDir: killed.runtimeDir });
    this.#watch(this.#served);
    for (const { name, recoveries } of before) {
      this.#earlierRecoveries.set(name, (this.#earlierRecoveries.get(name) ?? 0) + recoveries);
    }
    for (const device of spared) await this.#assertAdopted(device);
  }

  /** Whoever served it serves it still, unless an earlier fault, such as a signal that stopped him, ended him since. */
  async #assertAdopted(before: DeviceStatus): Promise<void> {
    const after = await this.#served.device(before.name);
    if (after.lastExit === null) assert.deepEqual(pidsOf(after), pidsOf(before), `${before.name} was not adopted`);
  }

  #watch(served: RunningSupervisor): void {
    void served.exit.then((code) => {
      if (!this.#earlier.has(served)) this.#fail(new Error(`the supervisor ended with ${code}`));
    });
  }
}
