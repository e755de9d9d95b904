import assert from 'node:assert/strict';
import { run } from './harness.js';
import { seed } from './random.js';

export interface FioJob {
  readonly name: string;
  readonly path: string;
  readonly size: string;
  readonly depth: number;
  /** Requests per second; left out, as many as go. */
  readonly rate?: number;
}

interface FioReport {
  readonly jobs: readonly {
    /** errno of the first failure; with continue_on_error there may be more. */
    readonly error: number;
    readonly total_err?: number;
    readonly write: { readonly total_ios: number };
    readonly read: { readonly total_ios: number };
  }[];
}

async function fio({ name, path, size, depth, rate }: FioJob, options: readonly string[]) {
  const { code, stdout, stderr } = await run('fio', [
    ...[`--name=${name}`, `--filename=${path}`, `--size=${size}`, '--output-format=json', '--thread'],
    ...['--ioengine=io_uring', '--direct=1', '--rw=randwrite', '--randrepeat=0', `--iodepth=${depth}`],
    ...(rate === undefined ? [] : [`--rate_iops=${rate}`]),
    ...options,
  ]);
  const said = `fio on ${name}: ${stderr}${stdout}`;
  assert.ok(stdout.includes('{'), said);
  const [job] = (JSON.parse(stdout.slice(stdout.indexOf('{'))) as FioReport).jobs;
  assert.ok(job, said);
  return { code, job, said };
}

/** Writes 4 KiB blocks in random order and verifies them meanwhile; gives the number of writes. No failure is allowed. */
export async function verifiedWrites(job: FioJob, pass: number): Promise<number> {
  const check = ['--verify=crc32c', '--verify_fatal=1', '--do_verify=1', '--verify_backlog=512'];
  const options = ['--bs=4k', '--serialize_overlap=1', `--randseed=${seed + pass}`, ...check];
  const { code, job: done, said } = await fio(job, options);
  assert.deepEqual([code, done.error], [0, 0], said);
  assert.ok(done.read.total_ios >= done.write.total_ios, 'not all that was written was verified');
  return done.write.total_ios;
}

/** Writes 64 KiB at random places, whether or not they fail; gives the number that failed, all with `errno`. */
export async function failingWrites(job: FioJob, pass: number, errno: number): Promise<number> {
  const options = ['--bs=64k', '--continue_on_error=write', '--loops=4', `--randseed=${seed + pass}`];
  const { job: done, said } = await fio(job, options);
  assert.ok(done.error === 0 || done.error === errno, said);
  return done.total_err ?? 0;
}

/** Keeps a device busy until `stop`, pass after pass, each to its end. */
export class Load {
  /** Rejects as soon as a pass fails; else resolves, after `stop`, with the sum of what the passes gave. */
  readonly done: Promise<number>;
  #wanted = true;

  constructor(run: (pass: number) => Promise<number>) {
    this.done = this.#repeat(run);
    // Whoever started the load awaits `done` later, and must not lose to the handler of unhandled rejections.
    this.done.catch(() => undefined);
  }

  /** Lets the pass under way be the last one. */
  stop(): Promise<number> {
    this.#wanted = false;
    return this.done;
  }

  async #repeat(run: (pass: number) => Promise<number>): Promise<number> {
    let sum = 0;
    for (let pass = 0; this.#wanted; pass++) sum += await run(pass);
    return sum;
  }
}

/** Runs `act` while each job writes and verifies, pass after pass. Rejects as `act` does, or as soon as a job fails. */
export async function underVerifiedWrites(jobs: readonly FioJob[], act: () => Promise<void>): Promise<void> {
  const loads = jobs.map((job) => new Load((pass) => verifiedWrites(job, pass)));
  try {
    await Promise.race([act(), ...loads.map(({ done }) => done.then(() => assert.fail('a load ended')))]);
  } finally {
    for (const load of loads) assert.ok((await load.stop()) > 0);
  }
}
