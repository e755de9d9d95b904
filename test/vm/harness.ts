import { execFile, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { chmod, chown, mkdtemp, stat, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { release } from 'node:os';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { after } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import assert from 'node:assert/strict';
import { messageOf } from '../../src/errors.js';
import { parentOf } from '../../src/supervisor/host/processes.js';
import type { DeviceStatus, Status } from '../../src/api/status.js';

/** What the tests share that run inside a guest, as root, on a real kernel. */

export const root = fileURLToPath(new URL('../../../', import.meta.url));
export const cli = join(root, 'dist/programs/ublk-supervisor.js');

/** A start of node alone takes seconds in an emulated guest, and beside loads, on a busy machine, a minute. */
export const COMMAND_TIMEOUT_MS = 600_000;
/** Of a condition, on an emulated machine that is a tenth as fast as the one before. */
const WAIT_TIMEOUT_MS = 120_000;
const MAX_OUTPUT = 100 * 2 ** 20;
/** Of a supervisor with its devices, beside loads that leave it little of the CPUs. */
const START_TIMEOUT_MS = 600_000;

/** Whether this kernel is Linux `major`.`minor` or later. */
export function isLinux(major: number, minor: number): boolean {
  const [ours = 0, oursToo = 0] = release().split('.').map(Number);
  return ours > major || (ours === major && oursToo >= minor);
}

export interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a command to its end; never rejects because of its exit code. Without execa, the hundred modules of which an emulated guest
 * loads in eight seconds.
 */
export function run(file: string, args: readonly string[] = [], timeoutMs = COMMAND_TIMEOUT_MS): Promise<Finished> {
  return new Promise((resolve, reject) => {
    execFile(file, args, { timeout: timeoutMs, maxBuffer: MAX_OUTPUT }, (error, stdout, stderr) => {
      if (error?.killed === true) {
        reject(new Error(`${file} ${args.join(' ')} did not end within ${timeoutMs} ms, or said too much`));
        return;
      }
      const code = typeof error?.code === 'number' ? error.code : -1;
      const [out, err] = [stdout, stderr].map((text) => text.replace(/\n$/, ''));
      resolve({ code: error === null ? 0 : code, stdout: out ?? '', stderr: err ?? '' });
    });
  });
}

/** Runs a command that must succeed; returns what it printed. */
export async function ok(file: string, args: readonly string[] = [], timeoutMs = COMMAND_TIMEOUT_MS): Promise<string> {
  const { code, stdout, stderr } = await run(file, args, timeoutMs);
  assert.equal(code, 0, `${file} ${args.join(' ')} ended with ${code}: ${stderr}${stdout}`);
  return stdout;
}

/** A shell script that must succeed; only for fixed text. */
export const shell = (script: string, timeoutMs = COMMAND_TIMEOUT_MS): Promise<string> =>
  ok('bash', ['-ec', script], timeoutMs);

/** Runs a command line of ublk-supervisor to its end. */
export const supervisorCommand = (...args: readonly string[]): Promise<Finished> =>
  run(process.execPath, [cli, ...args], COMMAND_TIMEOUT_MS);

/**
 * Gives a module and the folders above it to root alone, as a backend has to be. A checkout need not be so; this
 * changes only what the guest sees of it.
 */
export async function trust(module: string): Promise<void> {
  for (let place = module; ; place = dirname(place)) {
    await chown(place, 0, 0);
    await chmod(place, (await stat(place)).mode & 0o7755);
    if (place === dirname(place)) return;
  }
}

/** What is there of ublk device `id`. */
export const traces = (id: number): string[] =>
  [`/dev/ublkb${id}`, `/dev/ublkc${id}`, `/sys/class/ublk-char/ublkc${id}`].filter((path) => existsSync(path));

/**
 * Asks until `probe` gives something other than undefined or false. Whoever is waited for gets most of the time: what
 * costs much, as everything does in an emulated guest, is asked less often.
 */
export async function waitFor<Value>(
  what: string,
  probe: () => Promise<Value | undefined | false> | Value | undefined | false,
  timeoutMs = WAIT_TIMEOUT_MS,
): Promise<Value> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const asked = performance.now();
    const value = await probe();
    const answered = performance.now();
    if (value !== undefined && value !== false) return value;
    assert.ok(answered < deadline, `${what} did not happen within ${timeoutMs} ms`);
    await setTimeout(20 + 3 * (answered - asked));
  }
}

const supervisors = new Set<ReturnType<typeof spawn>>();
/** Which a zygote keeps open when its supervisor is gone. */
const logs = new Set<Readable>();

// After a test that failed, what it left running must not keep the report from coming; the guest ends the rest.
after(() => {
  for (const child of supervisors) child.kill('SIGKILL');
  for (const log of logs) log.destroy();
});

export interface ApiResponse {
  readonly status: number;
  readonly body: unknown;
}

/** A supervisor that runs in this guest. */
export class RunningSupervisor {
  readonly pid: number;
  readonly runtimeDir: string;
  /** Resolves with the exit code when the supervisor ends; a signal counts as 128 + number would in a shell. */
  readonly exit: Promise<number>;
  readonly #stderr: Readable;
  readonly #config: string;
  #log = '';

  private constructor(child: ReturnType<typeof spawn>, runtimeDir: string, config: string) {
    assert.ok(child.pid);
    this.#config = config;
    this.pid = child.pid;
    this.runtimeDir = runtimeDir;
    assert.ok(child.stderr);
    this.#stderr = child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#log += text;
    });
    supervisors.add(child);
    logs.add(this.#stderr);
    this.exit = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        supervisors.delete(child);
        resolve(signal === null ? (code ?? -1) : -1);
      });
    });
  }

  /**
   * Starts a supervisor with `devices` and waits until none of them is on its way any more. `under`: a command that runs
   * it in its own place; `args`: more arguments.
   */
  static async start(
    devices: readonly object[],
    options: {
      node?: string;
      program?: string;
      nodeOptions?: readonly string[];
      runtimeDir?: string;
      stateDir?: string;
      under?: readonly string[];
      args?: readonly string[];
    } = {},
  ): Promise<RunningSupervisor> {
    const directory = options.runtimeDir ?? (await mkdtemp('/run/supervisor-'));
    const config = join(await mkdtemp('/tmp/config-'), 'config.json');
    await writeFile(config, JSON.stringify({ devices }));
    const places = ['--runtime-dir', directory, '--state-dir', options.stateDir ?? join(directory, 'state')];
    const [program, ...args] = [...(options.under ?? []), options.node ?? process.execPath];
    assert.ok(program);
    args.push(
      ...(options.nodeOptions ?? []),
      options.program ?? cli,
      'start',
      config,
      ...places,
      ...(options.args ?? []),
    );
    const child = spawn(program, args, {
      stdio: ['ignore', 'inherit', 'pipe'],
      env: { PATH: process.env.PATH },
    });
    const served = new RunningSupervisor(child, directory, config);
    let ended: number | undefined;
    void served.exit.then((code) => {
      ended = code;
    });
    const isReady = (): boolean => {
      assert.equal(ended, undefined, `the supervisor ended with ${String(ended)}`);
      return served.log.includes('"serving"');
    };
    await waitFor('the supervisor being ready', isReady, START_TIMEOUT_MS).catch((error: unknown) => {
      throw new Error(`${messageOf(error)}: ${served.log}`, { cause: error });
    });
    return served;
  }

  /** Nobody reads its log until `use` is done. */
  async withLogStuck(use: () => Promise<void>): Promise<void> {
    this.#stderr.pause();
    try {
      await use();
    } finally {
      this.#stderr.resume();
    }
  }

  /** Writes other devices into its configuration, for it to reload. */
  configure(devices: readonly object[]): Promise<void> {
    return writeFile(this.#config, JSON.stringify({ devices }));
  }

  /** Everything of its log that was read so far, JSON lines. What it wrote before it answered may yet have to be read. */
  get log(): string {
    return this.#log;
  }

  /** Waits until its log has what matches. */
  async logs(pattern: RegExp, timeoutMs?: number): Promise<void> {
    const isThere = (): boolean => pattern.test(this.#log);
    await waitFor(`${String(pattern)} being logged`, isThere, timeoutMs).catch((error: unknown) => {
      throw new Error(`${messageOf(error)}: ${this.#log}`, { cause: error });
    });
  }

  api(method: string, path: string, body?: unknown): Promise<ApiResponse> {
    return new Promise((resolve, reject) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const socketPath = join(this.runtimeDir, 'control.sock');
      // Not over a connection that is kept alive: the supervisor may close it as we write.
      const outgoing = request({ socketPath, method, path, agent: false }, (response) => {
        let received = '';
        response.setEncoding('utf8').on('data', (part: string) => {
          received += part;
        });
        response.on('end', () =>
          resolve({ status: response.statusCode ?? 0, body: received === '' ? null : JSON.parse(received) }),
        );
      });
      outgoing.on('error', reject);
      if (text !== undefined) outgoing.setHeader('content-type', 'application/json');
      outgoing.end(text);
    });
  }

  /** Runs a command of the command line that talks to this supervisor. */
  command(...args: readonly string[]): Promise<Finished> {
    return supervisorCommand(...args, '--runtime-dir', this.runtimeDir);
  }

  async status(): Promise<Status> {
    return (await this.api('GET', '/v1/status')).body as Status;
  }

  async device(name: string): Promise<DeviceStatus> {
    const found = (await this.status()).devices.find((device) => device.name === name);
    assert.ok(found, `the supervisor knows no device ${name}: ${this.log}`);
    return found;
  }

  /** Adds a device, as in the configuration's `devices`; resolves when it is live. */
  async add(device: object): Promise<DeviceStatus> {
    const { status, body } = await this.api('POST', '/v1/devices', device);
    assert.equal(status, 201, JSON.stringify(body));
    return body as DeviceStatus;
  }

  /** Removes a device and its data, as `del` does. */
  async remove(name: string): Promise<void> {
    const { status, body } = await this.api('DELETE', `/v1/devices/${name}?data=remove`);
    assert.equal(status, 200, JSON.stringify(body));
  }

  /** Waits until the device is live with at least `recoveries` recoveries behind it. */
  untilLive(name: string, recoveries = 0, timeoutMs = WAIT_TIMEOUT_MS): Promise<DeviceStatus> {
    const isSo = (device: DeviceStatus): boolean => device.recoveries >= recoveries;
    return this.#untilLiveAnd(isSo, name, `after ${recoveries} recoveries`, timeoutMs);
  }

  /** Waits until the device is live in this generation or a later one. */
  untilGeneration(name: string, generation: number, timeoutMs = WAIT_TIMEOUT_MS): Promise<DeviceStatus> {
    const isSo = (device: DeviceStatus): boolean => device.generation >= generation;
    return this.#untilLiveAnd(isSo, name, `in generation ${generation}`, timeoutMs);
  }

  async #untilLiveAnd(
    isSo: (device: DeviceStatus) => boolean,
    name: string,
    how: string,
    timeoutMs: number,
  ): Promise<DeviceStatus> {
    let last: DeviceStatus | undefined;
    try {
      return await waitFor(
        `device ${name} being live ${how}`,
        async () => {
          last = await this.device(name);
          return last.state === 'live' && isSo(last) && last;
        },
        timeoutMs,
      );
    } catch (error) {
      const { state, generation, reason } = last ?? (await this.device(name));
      const now = `it is ${state} in generation ${generation}: ${String(reason)}`;
      throw new Error(`${messageOf(error)}; ${now}`, { cause: error });
    }
  }

  /** SIGTERM, as systemd does; resolves with the exit code. */
  terminate(): Promise<number> {
    process.kill(this.pid, 'SIGTERM');
    return this.exit;
  }
}

/** Pids of live processes whose name begins with `prefix`: `ublk/0/1` is queue 1 of device 0, `ublk-zygote` a zygote. */
export function processesNamed(prefix: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .filter((pid) => {
      try {
        const status = readFileSync(`/proc/${pid}/status`, 'utf8');
        return status.startsWith(`Name:\t${prefix}`) && !/^State:\tZ/m.test(status);
      } catch {
        return false;
      }
    })
    .map(Number);
}

/** The zygote of a device that is served. */
export function zygoteOf({ name, queues }: DeviceStatus): number {
  const zygote = parentOf(queues[0]?.pid ?? 0);
  assert.ok(zygote !== undefined, `nobody serves device ${name}`);
  return zygote;
}

/** Nothing where the process is gone: others may have ended it first. */
export function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Whether the process is gone, or a zombie that its parent has not seen yet. */
export function hasEnded(pid: number): boolean {
  try {
    return /^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return true;
  }
}

/** Complaints of the kernel since boot: warnings, oopses, hung tasks, I/O errors, but for what a test `expected`. */
export async function kernelComplaints(expected?: RegExp): Promise<string[]> {
  const log = await ok('dmesg');
  return log
    .split('\n')
    .filter((line) => /WARNING:|BUG:|Oops:|general protection|blocked for more than|I\/O error|Call Trace/.test(line))
    .filter((line) => !expected?.test(line));
}

function tasksInUninterruptibleSleep(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .flatMap((pid) => {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
        return stat.slice(stat.lastIndexOf(')')).includes(' D ') ? [stat] : [];
      } catch {
        return [];
      }
    });
}

/** After the last supervisor ended: no process, device node, socket, stuck task or kernel complaint of ours is left. */
export async function assertNothingLeft(runtimeDir: string, expected?: RegExp): Promise<void> {
  await waitFor('every queue process and zygote ending', () => processesNamed('ublk').length === 0, 5_000);
  const nodes = readdirSync('/dev').filter((name) => /^ublk[bc][0-9]/.test(name));
  assert.deepEqual(nodes, [], 'ublk device nodes are left');
  const sockets = existsSync(runtimeDir) ? readdirSync(runtimeDir).filter((name) => name.endsWith('.sock')) : [];
  assert.deepEqual(sockets, [], 'sockets are left');
  await waitFor('no task being stuck', () => tasksInUninterruptibleSleep().length === 0, 5_000);
  assert.deepEqual(await kernelComplaints(expected), []);
}
