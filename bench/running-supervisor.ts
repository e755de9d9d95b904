import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { createClient } from '../src/api/client.js';
import type { DeviceStatus } from '../src/api/status.js';

const ourRoot = fileURLToPath(new URL('../../', import.meta.url));
/** In a guest that counts instructions, time flies while it waits for a busy host. */
const START_DEADLINE_MS = 600_000;
const RECOVERY_DEADLINE_MS = 30_000;

/** A supervisor with the devices to measure. */
export class RunningSupervisor {
  readonly #directory: string;
  readonly #root: string;
  readonly #client;
  #child: ChildProcess;

  private constructor(directory: string, root: string, child: ChildProcess) {
    this.#directory = directory;
    this.#root = root;
    this.#client = createClient(directory);
    this.#child = child;
  }

  /**
   * Resolves when the devices are live. `root`: of the checkout whose supervisor it is to be; `preload`: a module that its
   * supervisor loads first.
   */
  static async start(devices: readonly object[], root = ourRoot, preload?: string): Promise<RunningSupervisor> {
    const directory = await mkdtemp('/run/ublk-bench-');
    await writeFile(configIn(directory), JSON.stringify({ devices }));
    return new RunningSupervisor(directory, root, await launch(directory, root, preload));
  }

  get pid(): number {
    return this.#child.pid ?? NaN;
  }

  /** Runs a command of the command line to its end. */
  async command(name: string): Promise<void> {
    await promisify(execFile)(process.execPath, [programIn(this.#root), name, '--runtime-dir', this.#directory]);
  }

  /** SIGKILL; resolves when another supervisor has taken over. */
  async replace(): Promise<void> {
    await end(this.#child, 'SIGKILL');
    this.#child = await launch(this.#directory, this.#root);
  }

  async devices(): Promise<readonly DeviceStatus[]> {
    return (await this.#client.status()).devices;
  }

  device(name: string): Promise<DeviceStatus> {
    return this.#client.device(name);
  }

  restart(name: string): Promise<DeviceStatus> {
    return this.#client.restart(name);
  }

  /** Waits until the device is live in that generation. */
  async untilGeneration(name: string, generation: number): Promise<DeviceStatus> {
    const deadline = performance.now() + RECOVERY_DEADLINE_MS;
    for (;;) {
      const device = await this.device(name);
      if (device.state === 'live' && device.generation >= generation) return device;
      if (performance.now() > deadline) throw new Error(`device ${name} is not live again: ${device.reason ?? ''}`);
      await setTimeout(20);
    }
  }

  async terminate(): Promise<void> {
    const code = await end(this.#child, 'SIGTERM');
    if (code !== 0) throw new Error(`the supervisor ended with ${String(code)}`);
  }
}

const configIn = (directory: string): string => join(directory, 'config.json');

/** Of a checkout from before its programs were bundled, too. */
function programIn(root: string): string {
  const bundled = join(resolve(root), 'dist/programs/ublk-supervisor.js');
  return existsSync(bundled) ? bundled : join(resolve(root), 'dist/src/cli/main.js');
}

/** Resolves when the supervisor serves. */
async function launch(directory: string, root: string, preload?: string): Promise<ChildProcess> {
  const options = preload === undefined ? [] : ['--import', preload];
  const args = ['start', configIn(directory), '--runtime-dir', directory];
  const child = spawn(process.execPath, [...options, programIn(root), ...args], {
    stdio: ['ignore', 'inherit', 'pipe'],
  });
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (log += text));
  const deadline = performance.now() + START_DEADLINE_MS;
  while (!log.includes('"serving"')) {
    if (child.exitCode !== null || child.signalCode !== null || performance.now() > deadline) {
      throw new Error(`the supervisor did not start: ${log}`);
    }
    await setTimeout(50);
  }
  return child;
}

/** Resolves with the exit code; null after a signal that it did not handle. */
async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  const exit = once(child, 'exit');
  child.kill(signal);
  const [code] = (await exit) as [number | null];
  return code;
}
