import { spawn } from 'node:child_process';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { createClient } from '../src/cli/client.js';
import type { DeviceStatus } from '../src/supervisor/status.js';

const ourRoot = fileURLToPath(new URL('../../', import.meta.url));
/** In a guest that counts instructions, time flies while it waits for a busy host. */
const START_DEADLINE_MS = 600_000;
const RECOVERY_DEADLINE_MS = 30_000;

/** A supervisor with the devices to measure. */
export class Served {
  readonly #client;
  readonly #exit: Promise<number | null>;
  readonly #kill: () => void;
  #ended = false;

  private constructor(child: ReturnType<typeof spawn>, runtimeDir: string) {
    this.#client = createClient(runtimeDir);
    this.#kill = () => child.kill('SIGTERM');
    this.#exit = new Promise((done) => {
      child.once('exit', (code) => {
        this.#ended = true;
        done(code);
      });
    });
  }

  /** Resolves when the devices are live. `root`: of the checkout whose supervisor it is to be. */
  static async start(devices: readonly object[], root = ourRoot): Promise<Served> {
    const directory = await mkdtemp('/run/ublk-bench-');
    const config = join(directory, 'config.json');
    await writeFile(config, JSON.stringify({ devices }));
    const main = join(resolve(root), 'dist/src/cli/main.js');
    const child = spawn(process.execPath, [main, 'start', config, '--runtime-dir', directory], {
      stdio: ['ignore', 'inherit', 'pipe'],
    });
    let log = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (log += text));
    const served = new Served(child, directory);
    const deadline = performance.now() + START_DEADLINE_MS;
    while (!log.includes('"serving"')) {
      if (served.#ended || performance.now() > deadline) throw new Error(`the supervisor did not start: ${log}`);
      await setTimeout(50);
    }
    return served;
  }

  async devices(): Promise<readonly DeviceStatus[]> {
    return (await this.#client.status()).devices;
  }

  async device(name: string): Promise<DeviceStatus> {
    const found = (await this.devices()).find((device) => device.name === name);
    if (!found) throw new Error(`there is no device ${name}`);
    return found;
  }

  /** Waits until the device is live with that many recoveries behind it. */
  async untilRecovered(name: string, recoveries: number): Promise<DeviceStatus> {
    const deadline = performance.now() + RECOVERY_DEADLINE_MS;
    for (;;) {
      const device = await this.device(name);
      if (device.state === 'live' && device.recoveries >= recoveries) return device;
      if (performance.now() > deadline) throw new Error(`device ${name} did not recover: ${device.reason ?? ''}`);
      await setTimeout(20);
    }
  }

  async terminate(): Promise<void> {
    this.#kill();
    const code = await this.#exit;
    if (code !== 0) throw new Error(`the supervisor ended with ${String(code)}`);
  }
}
