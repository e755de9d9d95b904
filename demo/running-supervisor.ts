import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient } from '../src/api/client.js';
import type { DeviceStatus } from '../src/api/status.js';
import { DemoError, command } from './command.js';

const CLI = fileURLToPath(new URL('../src/cli/main.js', import.meta.url));
const POLL_MS = 20;
/** How long anything may take, which on an emulated and busy machine is long. */
export const PATIENCE_MS = 60_000;

/** A supervisor, run as a user would run it: by its command line. */
export class RunningSupervisor {
  readonly #runtimeDir: string;
  readonly #process: ChildProcess;
  #log = '';
  #exit: string | undefined;

  constructor(config: string, runtimeDir: string) {
    this.#runtimeDir = runtimeDir;
    const places = ['--runtime-dir', runtimeDir, '--state-dir', runtimeDir];
    this.#process = spawn(process.execPath, [CLI, 'start', config, ...places], {
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#process.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#log += text;
    });
    this.#process.on('exit', (code, signal) => {
      this.#exit = signal ?? `exit code ${String(code)}`;
    });
  }

  get running(): boolean {
    return this.#exit === undefined;
  }

  /** Resolves when no device is on its way any more. */
  async ready(): Promise<void> {
    await this.#until('the supervisor was not ready', () => this.#log.includes('"serving"'));
  }

  async device(name: string): Promise<DeviceStatus> {
    const { devices } = await createClient(this.#runtimeDir).status();
    const found = devices.find((device) => device.name === name);
    if (found === undefined) throw new DemoError(`device ${name} is not served: ${this.#lastWords()}`);
    return found;
  }

  /** Resolves when the device is live and was recovered at least `recoveries` times. */
  async live(name: string, recoveries: number): Promise<DeviceStatus> {
    let device = await this.device(name);
    await this.#until(`device ${name} was not live after recovery ${recoveries}`, async () => {
      device = await this.device(name);
      return device.state === 'live' && device.recoveries >= recoveries;
    });
    return device;
  }

  /** One of the commands that talk to a running supervisor. */
  async command(...args: readonly string[]): Promise<void> {
    await command(process.execPath, [CLI, ...args, '--runtime-dir', this.#runtimeDir], { timeoutMs: PATIENCE_MS });
  }

  /** For the ending that goes wrong: nothing of the supervisor survives. */
  async kill(): Promise<void> {
    const { pid } = this.#process;
    if (pid === undefined || !this.running) return;
    // What serves is in a process group of its own, to outlive its supervisor: that of the nursery, our child's child.
    const nurseries = (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).match(/[0-9]+/g) ?? [];
    const ended = once(this.#process, 'exit');
    for (const each of [pid, ...nurseries.map((nursery) => -Number(nursery))]) process.kill(each, 'SIGKILL');
    await ended;
  }

  async #until(problem: string, probe: () => boolean | Promise<boolean>): Promise<void> {
    const deadline = performance.now() + PATIENCE_MS;
    while (!(await probe())) {
      if (this.#exit !== undefined) throw new DemoError(`the supervisor ended (${this.#exit}): ${this.#lastWords()}`);
      if (performance.now() > deadline) throw new DemoError(`${problem} within ${PATIENCE_MS / 1000} s`);
      await sleep(POLL_MS);
    }
  }

  #lastWords(): string {
    const lines = this.#log.trim().split('\n');
    return lines.findLast((line) => !line.startsWith('{') || line.includes('"level":"error"')) ?? 'see its log';
  }
}
