import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { after } from 'node:test';
import { messageOf } from '../../src/errors.js';
import type { DeviceStatus, ExitStatus } from '../../src/api/status.js';
import { type RunningSupervisor, assertNothingLeft, kernelComplaints, root, waitFor } from './harness.js';
import { seed } from './random.js';
import type { RegisterReport } from './registers.js';
import { Witness } from './witness.js';

/**
 * What must hold whatever is done to a device; the numbers are those of the fault matrix in docs/reliability.md.
 * O1 no acknowledged write is lost, O2 no read gives what was never or earlier written, O3 no client sees an error, O4
 * every request ends within a budget: `Registers`. O5 nothing is left: `assertNothingLeft`. O6 the kernel does not
 * complain: `kernelComplaints`. O7 other devices notice nothing: `Witness` and `assertUndisturbed`. O8 `status` names the
 * cause: `assertCause`. O9 the supervisor may die at any moment: a fault of its own.
 */

/** Beyond it a client's request counts as one that never ends; ample for a generation that boots node on a busy machine. */
const BUDGET_MS = 60_000;

const running = new Set<ChildProcess>();

// After a test that failed they would go on, and its program with them.
after(() => {
  for (const child of running) child.kill('SIGKILL');
});

interface Extent {
  /** In blocks of 4 KiB. */
  readonly first?: number;
  readonly count?: number;
  readonly budgetMs?: number;
  /** Of each of its four lanes after each operation, so that something else gets the CPUs. */
  readonly restMs?: number;
}

/** Registers on a device, used without a pause unless they are to rest: O1 to O4. */
export class Registers {
  readonly path: string;
  /** Rejects as soon as an oracle is broken; else resolves after `end`. */
  readonly done: Promise<RegisterReport>;
  readonly #child: ChildProcess;
  #last: RegisterReport = { operations: 0, longestMs: 0 };
  #ended = false;

  private constructor(path: string, { first = 0, count = 64, budgetMs = BUDGET_MS, restMs = 0 }: Extent) {
    this.path = path;
    const program = join(root, 'dist/test/vm/registers.js');
    const child = fork(program, [path, ...[first, count, budgetMs, restMs].map(String)], {
      env: { PATH: process.env.PATH, TEST_SEED: String(seed) },
      execArgv: [],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#child = child;
    running.add(child);
    child.on('message', (report: RegisterReport) => {
      this.#last = report;
    });
    this.done = new Promise((resolve, reject) => {
      child.once('exit', (code, signal) => {
        this.#ended = true;
        running.delete(child);
        if (code === 0) resolve(this.#last);
        else reject(new Error(`the registers of ${path} ended with ${String(signal ?? code)}, see stderr`));
      });
    });
    this.done.catch(() => undefined);
  }

  /** On a device that is live. What is on it before counts as written. */
  static async on({ name, path }: DeviceStatus, extent: Extent = {}): Promise<Registers> {
    const registers = new Registers(path ?? assert.fail(`${name} has no path`), extent);
    await registers.progress();
    return registers;
  }

  /** Resolves after requests that begun after this call; the device serves. */
  async progress(): Promise<void> {
    // As many as may have been under way, and some.
    const enough = this.#last.operations + 16;
    await waitFor(
      `requests to ${this.path} being answered`,
      async () => {
        if (this.#ended) await this.done;
        return this.#last.operations >= enough;
      },
      BUDGET_MS,
    );
  }

  /** Reads every register once more. */
  end(): Promise<RegisterReport> {
    if (this.#child.connected) this.#child.send('stop');
    return this.done;
  }
}

/** O7: neither a pause nor an exit since the device was started. */
export async function assertUndisturbed(served: RunningSupervisor, name: string): Promise<void> {
  const { state, generation, recoveries, lastExit, reason } = await served.device(name);
  assert.deepEqual([state, generation, recoveries, lastExit, reason], ['live', 1, 0, null, null], `${name} noticed`);
}

type Cause = Partial<Pick<ExitStatus, 'signal' | 'code' | 'queue'>> & { readonly reason?: RegExp };

/** O8: the device's last exit is the one that was caused. */
export function assertCause({ name, lastExit }: DeviceStatus, { reason, ...cause }: Cause): void {
  assert.ok(lastExit, `${name} has no exit`);
  for (const [key, value] of Object.entries(cause)) assert.equal(lastExit[key as keyof ExitStatus], value, name);
  if (reason) assert.match(lastExit.reason ?? '', reason);
}

/** All oracles around a test: some devices are made to suffer, another is the witness. */
export class Oracles {
  readonly #served: RunningSupervisor;
  readonly #registers: readonly Registers[];
  readonly #witness: Witness;
  readonly #witnessName: string;
  readonly #expected: RegExp | undefined;

  private constructor(
    served: RunningSupervisor,
    registers: readonly Registers[],
    witness: Witness,
    witnessName: string,
    expected?: RegExp,
  ) {
    this.#served = served;
    this.#registers = registers;
    this.#witness = witness;
    this.#witnessName = witnessName;
    this.#expected = expected;
  }

  /** `expected`: complaints of the kernel that the test causes on purpose. */
  static async around(
    served: RunningSupervisor,
    options: { readonly checked: readonly string[]; readonly witness: string; readonly expected?: RegExp },
  ): Promise<Oracles> {
    const pathOf = async (name: string): Promise<string> =>
      (await served.device(name)).path ?? assert.fail(`${name} has no path: ${served.log}`);
    const registers = await Promise.all(options.checked.map(async (name) => Registers.on(await served.device(name))));
    const witness = await Witness.of(await pathOf(options.witness));
    return new Oracles(served, registers, witness, options.witness, options.expected);
  }

  /** Resolves when every device that is checked has served since, and nobody had anything to complain about. */
  async hold(): Promise<void> {
    try {
      await Promise.all([...this.#registers.map((registers) => registers.progress()), this.#witness.round()]);
    } catch (error) {
      throw new Error(`${messageOf(error)}; the end of the log:\n${this.#served.log.slice(-4000)}`, { cause: error });
    }
    await assertUndisturbed(this.#served, this.#witnessName);
    assert.deepEqual(await kernelComplaints(this.#expected), []);
  }

  /** Ends the load and the supervisor, of which nothing may be left; gives what the registers did. */
  async end(): Promise<readonly RegisterReport[]> {
    const reports = await Promise.all(this.#registers.map((registers) => registers.end()));
    await this.#witness.end();
    await assertUndisturbed(this.#served, this.#witnessName);
    assert.equal(await this.#served.terminate(), 0, this.#served.log);
    await assertNothingLeft(this.#served.runtimeDir, this.#expected);
    return reports;
  }
}
