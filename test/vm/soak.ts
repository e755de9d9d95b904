import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Load, verifiedWrites } from './fio.js';
import { assertNothingLeft, kernelComplaints, root, shell } from './harness.js';
import { Registers, assertUndisturbed } from './oracles.js';
import { generator } from './random.js';
import { MODULE, Soak, STORE } from './soak-devices.js';
import { SETTLE_MS, faults, untilAllLive, type Fault } from './soak-faults.js';
import { Witness } from './witness.js';

/**
 * `npm run soak`: random faults for some minutes, against devices under fio verify, registers and an ext4 with files whose
 * checksums are known. The seed alone decides which fault comes when and what it is aimed at, of those
 * that the kernel allows.
 */

const USAGE = 'usage: soak [--minutes N] [--seed S]';
const STOP_FILES = '/run/soak-stop';

const { values } = parseArgs({ options: { minutes: { type: 'string' }, seed: { type: 'string' } } });
const minutes = Number(values.minutes ?? 10);
const seed = Number(values.seed ?? Date.now() % 2 ** 32);
assert.ok(minutes > 0 && Number.isInteger(seed), USAGE);

const began = performance.now();
const say = (text: string): void => {
  process.stdout.write(`${((performance.now() - began) / 1000).toFixed(1).padStart(8)} s  ${text}\n`);
};

/** A step of the schedule: all that is random about it comes from `seed`. */
interface Step {
  readonly fault: Fault;
  readonly pauseMs: number;
  /** Whether the next one waits until all devices serve. */
  readonly settle: boolean;
  readonly seed: number;
}

function* schedule(): Generator<Step> {
  const random = generator(seed);
  const lots = faults
    .filter(({ possible }) => possible?.() ?? true)
    .flatMap((fault) => Array.from({ length: fault.weight }, () => fault));
  for (;;) {
    const fault = lots[random(lots.length)];
    assert.ok(fault);
    yield { fault, pauseMs: random(1500), settle: random(3) > 0, seed: random(2 ** 32) };
  }
}

/** Writes files with their checksums, looks at old ones and removes some, until it is told to stop. */
function files(directory: string): Promise<void> {
  const script = `
    cd ${directory}
    for ((i = 0; ; i++)); do
      [ ! -e ${STOP_FILES} ] || break
      n=$((i % 24))
      head -c $((RANDOM * 8)) /dev/urandom > $n
      sha256sum $n > $n.sum
      ((i % 5)) || sync -f .
      m=$((RANDOM % 24))
      [ ! -e $m.sum ] || sha256sum --quiet -c $m.sum
      sleep 0.1
    done
    sync -f .
    echo 1 > /proc/sys/vm/drop_caches
    for sum in *.sum; do sha256sum --quiet -c $sum; done`;
  const child = spawn('bash', ['-ec', script], { stdio: ['ignore', 'inherit', 'inherit'] });
  return new Promise((resolve, reject) => {
    child.once('exit', (code) => {
      if (code === 0) resolve();
      else reject(new Error(`the files ended with ${String(code)}`));
    });
  });
}

async function run(): Promise<string> {
  say(`seed ${seed}, ${minutes} minutes`);
  await mkdir(dirname(MODULE));
  await copyFile(join(root, 'test/vm/soak-backend.js'), MODULE);
  // One that can be frozen.
  const image = '/dev/shm/store.img';
  await shell(
    `modprobe loop; mkdir -p ${STORE} /mnt/files; truncate -s 100M ${image}; mkfs.ext4 -q ${image}; mount -o loop ${image} ${STORE}`,
  );
  const soak = await Soak.start();
  const pathOf = async (name: string): Promise<string> =>
    (await soak.served.device(name)).path ?? assert.fail(soak.log);
  await shell(`mkfs.ext4 -q ${await pathOf('file')}; mount ${await pathOf('file')} /mnt/files`);
  const job = { name: 'ram', path: await pathOf('ram'), size: '8M', depth: 16, rate: 500 };
  const load = new Load((pass) => verifiedWrites(job, pass));
  const pace = { budgetMs: SETTLE_MS, restMs: 10 };
  const registers = await Promise.all([
    Registers.on(await soak.served.device('ram'), { first: 2048, count: 256, ...pace }),
    Registers.on(await soak.served.device('script'), { count: 256, ...pace }),
  ]);
  const checked = files('/mnt/files');
  checked.catch(() => undefined);
  const witness = await Witness.of(await pathOf('witness'));
  /** Rejects as soon as anything that must hold does not. */
  const broken = Promise.race([...registers.map(({ done }) => done), load.done, checked, soak.failed]).then(() =>
    assert.fail('a load ended by itself'),
  );
  broken.catch(() => undefined);

  const counts = new Map<Fault, number>();
  try {
    for (const { fault, pauseMs, settle, seed: own } of schedule()) {
      if (performance.now() - began > minutes * 60_000) break;
      await Promise.race([setTimeout(pauseMs), broken]);
      const said = await Promise.race([fault.strike(soak, generator(own)), broken]);
      say(`${fault.name}${said === '' ? '' : `: ${said}`}`);
      counts.set(fault, (counts.get(fault) ?? 0) + 1);
      if (!settle) continue;
      await Promise.race([untilAllLive(soak), broken]);
      // Generations that die young are started ever more slowly, which would leave time for little else.
      for (const name of soak.victims) await soak.served.api('POST', `/v1/devices/${name}/recover`);
      assert.deepEqual(await kernelComplaints(), []);
    }
    say('no more faults');
    await Promise.race([untilAllLive(soak), broken]);
    await witness.end();
    await writeFile(STOP_FILES, '');
    const [written, , ...reports] = await Promise.all([
      load.stop(),
      checked,
      ...registers.map((register) => register.end()),
    ]);
    await shell('umount /mnt/files');
    const recoveries = await soak.recoveries();
    if (![...counts.keys()].some(({ hurtsWitness }) => hurtsWitness)) await assertUndisturbed(soak.served, 'witness');
    assert.equal(await soak.served.terminate(), 0);
    await assertNothingLeft(soak.served.runtimeDir);
    for (const [{ name }, count] of counts) say(`${String(count).padStart(5)} x ${name}`);
    for (const { operations, longestMs } of reports) {
      say(`${operations} register operations, the longest ${(longestMs / 1000).toFixed(1)} s`);
    }
    return `${written} verified writes of fio; recoveries: ${recoveries}`;
  } catch (error) {
    // One line of the kernel's log says little without those around it.
    const rest = await shell('ps -eo pid,ppid,stat,wchan:24,etime,comm; dmesg | tail -n 200', SETTLE_MS);
    process.stderr.write(`${soak.log}\n${rest}\n`);
    throw error;
  }
}

try {
  say(`ok: ${await run()}`);
  process.exit(0);
} catch (error) {
  say(`FAILED with seed ${seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  process.exit(1);
}
