import { readFile, writeFile } from 'node:fs/promises';
import { setTimeout } from 'node:timers/promises';
import { ublkFeatures } from '../../src/native/addon/system.js';
import { featureFlag } from '../../src/supervisor/host/ublk-features.js';
import { isLinux, processesNamed, shell, waitFor, type ApiResponse, signal } from './harness.js';
import { memoryOf } from './ram-data.js';
import type { Random } from './random.js';
import { STORE, pidsOf, type Soak } from './soak-devices.js';

/** What a soak does to its devices, as data: a new fault is one entry here. */

export interface Fault {
  readonly name: string;
  /** How often, compared with the others. */
  readonly weight: number;
  /** Left out: on every kernel. */
  readonly possible?: () => boolean;
  /** The zygote dies of it, and with it the witness's queue process. */
  readonly hurtsWitness?: true;
  /** Resolves when it was done, with what to print of it; the devices recover meanwhile or afterwards. */
  readonly strike: (soak: Soak, random: Random) => Promise<string>;
}

/** For what takes CPUs, memory or caches, from itself too, beside all the loads. */
const PATIENCE_MS = 600_000;

/** A generation that boots node on a busy machine, after a hang, with a back-off. */
export const SETTLE_MS = 180_000;

const ORDERS = { abort: 1, 'never answer': 2, 'loop for ever': 3, 'throw an uncaught error': 4 } as const;
const orderNames = Object.keys(ORDERS) as (keyof typeof ORDERS)[];

function pick<Item>(items: readonly Item[], random: Random): Item {
  const item = items[random(items.length)];
  if (item === undefined) throw new TypeError('nothing to pick from');
  return item;
}

/** Sends a signal to `choose`n queue processes of a victim. */
async function toQueues(
  { served, victims }: Soak,
  random: Random,
  name: NodeJS.Signals,
  choose: (pids: readonly number[]) => readonly number[],
): Promise<string> {
  const device = await served.device(pick(victims, random));
  const pids = choose(pidsOf(device));
  for (const pid of pids) signal(pid, name);
  return `${name} to ${device.name}, ${pids.join(' and ')}`;
}

/** It may well be refused: an earlier fault may have the device recover, or come in between. */
function answered(what: string, { status, body }: ApiResponse): string {
  const { error } = body as { readonly error?: { readonly message: string } };
  return `${what}, answered with ${status}${error === undefined ? '' : ` ${error.message}`}`;
}

function toProcesses(name: string, signalName: NodeJS.Signals): string {
  const pids = processesNamed(name);
  for (const pid of pids) signal(pid, signalName);
  return pids.join(' and ');
}

const HUNG_TASK_TIMEOUT = '/proc/sys/kernel/hung_task_timeout_secs';

/**
 * Nothing that has to do with a file of the store is answered meanwhile. On a busy machine that may last for longer than the
 * kernel lets anything wait without a complaint, so it looks for what hangs before and after.
 */
async function withStoreStill(use: () => Promise<unknown>): Promise<void> {
  const timeout = await readFile(HUNG_TASK_TIMEOUT);
  await writeFile(HUNG_TASK_TIMEOUT, '0');
  await shell(`fsfreeze -f ${STORE}`, PATIENCE_MS);
  try {
    await use();
  } finally {
    await shell(`fsfreeze -u ${STORE}`);
    await writeFile(HUNG_TASK_TIMEOUT, timeout);
  }
}

/** Kills the supervisor in the middle of what it was asked for. */
async function killDuring(soak: Soak, random: Random, request: Promise<ApiResponse>): Promise<string> {
  const milliseconds = random(300);
  // Nobody may be left to answer.
  await Promise.race([request.catch(() => undefined), setTimeout(milliseconds)]);
  await soak.replaceSupervisor();
  return `after at most ${milliseconds} ms`;
}

/** Before Linux 6.16 a device that recovers when its zygote dies is lost; docs/reliability.md, "What is promised". */
async function zygotesToKill(soak: Soak): Promise<readonly number[]> {
  if (!isLinux(6, 16)) await untilAllLive(soak);
  return processesNamed('ublk-zygote');
}

const MIB = 2 ** 20;
const canResize = (): boolean => (ublkFeatures() & featureFlag('UPDATE_SIZE')) !== 0n;

/** To at most twice the size at the beginning, of which alone the clients make use. */
function resize(soak: Soak, random: Random): { readonly said: string; readonly answer: Promise<ApiResponse> } {
  const { name, backend } = pick(soak.resizable, random);
  const size = backend.size + random(backend.size / MIB) * MIB;
  const answer = soak.served.api('POST', `/v1/devices/${name}/resize`, { size, force: true });
  return { said: `${name} to ${size / MIB} MiB`, answer };
}

export const faults: readonly Fault[] = [
  {
    name: 'kill one',
    weight: 6,
    strike: (soak, random) => toQueues(soak, random, 'SIGKILL', (pids) => pids.slice(-1 - random(2)).slice(0, 1)),
  },
  { name: 'kill all', weight: 4, strike: (soak, random) => toQueues(soak, random, 'SIGKILL', (pids) => pids) },
  {
    name: 'kill the zygotes',
    weight: 2,
    hurtsWitness: true,
    strike: async (soak) => {
      const zygotes = await zygotesToKill(soak);
      for (const pid of zygotes) signal(pid, 'SIGKILL');
      return zygotes.join(' and ');
    },
  },
  {
    name: 'kill the supervisor',
    weight: 3,
    strike: async (soak) => {
      await soak.replaceSupervisor();
      return `${soak.served.pid} goes on`;
    },
  },
  {
    name: 'kill the supervisor and the zygotes',
    weight: 1,
    hurtsWitness: true,
    strike: async (soak) => {
      await soak.replaceSupervisor(await zygotesToKill(soak));
      return `${soak.served.pid} goes on`;
    },
  },
  {
    name: 'kill the supervisor while it hands over',
    weight: 2,
    strike: async (soak, random) => {
      const name = pick(soak.victims, random);
      return `${name}, ${await killDuring(soak, random, soak.served.api('POST', `/v1/devices/${name}/restart`))}`;
    },
  },
  {
    name: 'kill the supervisor while it resizes',
    weight: 1,
    possible: canResize,
    strike: async (soak, random) => {
      const { said, answer } = resize(soak, random);
      return `${said}, ${await killDuring(soak, random, answer)}`;
    },
  },
  {
    name: 'kill the supervisor while the store stands still',
    weight: 1,
    strike: async (soak) => {
      await withStoreStill(() => soak.replaceSupervisor());
      return `${soak.served.pid} goes on`;
    },
  },
  {
    name: 'the store stands still for a moment',
    weight: 2,
    strike: async (_soak, random) => {
      const milliseconds = random(8000);
      // Nothing waits for this: so long is the outage.
      await withStoreStill(() => setTimeout(milliseconds));
      return `${milliseconds} ms`;
    },
  },
  { name: 'kill who opens stores', weight: 2, strike: async () => toProcesses('ublk-stores', 'SIGKILL') },
  { name: 'stop who opens stores', weight: 2, strike: async () => toProcesses('ublk-stores', 'SIGSTOP') },
  { name: 'kill the nursery', weight: 1, strike: async () => toProcesses('ublk-nursery', 'SIGKILL') },
  {
    name: 'hand over',
    weight: 4,
    strike: async ({ served, victims }, random) => {
      const name = pick(victims, random);
      return answered(name, await served.api('POST', `/v1/devices/${name}/restart`));
    },
  },
  {
    name: 'reload with another option',
    weight: 2,
    strike: async (soak, random) => {
      const name = pick(soak.victims, random);
      const requestTimeout = `${3000 + random(1000)}ms`;
      await soak.configure(name, { requestTimeout });
      return answered(`${name} with ${requestTimeout}`, await soak.served.api('POST', '/v1/reload'));
    },
  },
  {
    name: 'resize',
    weight: 2,
    possible: canResize,
    strike: async (soak, random) => {
      const { said, answer } = resize(soak, random);
      return answered(said, await answer);
    },
  },
  {
    name: 'stop one',
    weight: 2,
    strike: (soak, random) => toQueues(soak, random, 'SIGSTOP', (pids) => pids.slice(0, 1)),
  },
  {
    name: 'stop one for a moment',
    weight: 2,
    strike: async (soak, random) => {
      let stopped: readonly number[] = [];
      const said = await toQueues(soak, random, 'SIGSTOP', (pids) => (stopped = pids.slice(-1)));
      await setTimeout(random(1000));
      for (const pid of stopped) signal(pid, 'SIGCONT');
      return said;
    },
  },
  {
    name: 'stop the supervisor for a moment',
    weight: 2,
    strike: async ({ served }, random) => {
      process.kill(served.pid, 'SIGSTOP');
      const milliseconds = random(6000);
      await setTimeout(milliseconds);
      process.kill(served.pid, 'SIGCONT');
      return `${milliseconds} ms`;
    },
  },
  {
    name: 'order a backend',
    weight: 5,
    strike: ({ scripts }, random) => {
      const device = pick(scripts, random);
      const order = pick(orderNames, random);
      memoryOf(device, 'orders', 4096)[0] = ORDERS[order];
      return Promise.resolve(`${device} to ${order}`);
    },
  },
  {
    name: 'be short of memory',
    weight: 2,
    strike: async (_soak, random) => {
      const mebibytes = 100 + random(400);
      await shell(`head -c ${mebibytes}M /dev/zero | tail > /dev/null`, PATIENCE_MS);
      return `${mebibytes} MiB taken and given back`;
    },
  },
  { name: 'drop caches', weight: 1, strike: async () => shell('sync; echo 1 > /proc/sys/vm/drop_caches', PATIENCE_MS) },
  {
    name: 'keep the CPUs busy',
    weight: 2,
    strike: async (_soak, random) => {
      const seconds = 1 + random(5);
      await shell(`for i in 1 2 3 4; do timeout ${seconds} sh -c 'while :; do :; done' & done; wait`, PATIENCE_MS);
      return `${seconds} s`;
    },
  },
  {
    name: 'add and remove another',
    weight: 3,
    strike: async ({ served }, random) => {
      const queues = 1 + random(3);
      await served.add({ name: 'passing', queues, backend: { type: 'ram', size: '16MiB' } });
      await served.remove('passing');
      return `${queues} queues`;
    },
  },
  {
    name: 'ask for the status',
    weight: 2,
    strike: async ({ served }, random) => {
      // The control socket takes 64 connections at a time.
      const times = 20 + random(40);
      await Promise.all(Array.from({ length: times }, () => served.status()));
      return `${times} times at once`;
    },
  },
  {
    name: 'recover what is well',
    weight: 1,
    strike: async ({ served, victims }, random) => {
      const name = pick(victims, random);
      return answered(name, await served.api('POST', `/v1/devices/${name}/recover`));
    },
  },
  {
    name: 'a CPU goes and comes back',
    weight: 1,
    strike: async () =>
      shell('echo 0 > /sys/devices/system/cpu/cpu1/online; sleep 1; echo 1 > /sys/devices/system/cpu/cpu1/online'),
  },
];

/** Everybody serves again. */
export async function untilAllLive({ served, victims }: Soak): Promise<void> {
  await waitFor(
    'every device being live',
    async () => {
      const { devices } = await served.status();
      return victims.every((name) => devices.some((device) => device.name === name && device.state === 'live'));
    },
    SETTLE_MS,
  );
}
