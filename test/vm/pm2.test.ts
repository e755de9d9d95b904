// run: full
// kernels: newest
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { COMMAND_TIMEOUT_MS, assertNothingLeft, cli, hasEnded, ok, processesNamed } from './harness.js';
import { root, shell, waitFor } from './harness.js';

/** deploy/ecosystem.config.cjs, run by pm2. */

process.env.PM2_HOME = '/run/pm2';
process.env.PM2_DISCRETE_MODE = 'true';
const RUNTIME_DIR = '/run/ublk-supervisor';
const LINK = '/dev/ublk/by-name/disk';
const LOG = '/run/pm2/logs/ublk-supervisor-error-0.log';
const PID_FILE = '/run/pm2/pids/ublk-supervisor-0.pid';
const devices = [{ name: 'disk', queues: 2, backend: { type: 'ram', size: '32MiB' } }];

const pm2 = (...args: string[]): Promise<string> =>
  ok(process.execPath, [join(root, 'node_modules/pm2/bin/pm2'), ...args]);

/** The supervisor's; 0: there is none. */
function pid(): number {
  try {
    return Number(readFileSync(PID_FILE, 'utf8'));
  } catch {
    return 0;
  }
}

const servedTimes = (): number => readFileSync(LOG, 'utf8').split('"serving"').length - 1;

/** pm2 has started another one than `before`, which serves; `starts`: how often one did before. */
async function isStartedAgain(before: number, starts: number): Promise<void> {
  await waitFor('the restart', () => ![0, before].includes(pid()), COMMAND_TIMEOUT_MS);
  await waitFor('its successor serving', () => servedTimes() > starts, COMMAND_TIMEOUT_MS);
}

const isReadable = (): Promise<string> =>
  ok('dd', [`if=${LINK}`, 'of=/dev/null', 'bs=4k', 'count=8', 'iflag=direct', 'status=none']);

after(() => pm2('kill'));

test('under pm2', { timeout: 1_100_000 }, async (t) => {
  await mkdir('/etc/ublk-supervisor');
  await writeFile('/etc/ublk-supervisor/config.json', JSON.stringify({ devices }));
  const ecosystem = join(root, 'deploy/ecosystem.config.cjs');
  let first = 0;

  await t.test('start returns when the devices are live', async () => {
    await pm2('start', ecosystem);
    await isReadable();
    first = pid();
    assert.ok(first);
    for (const child of processesNamed('ublk')) {
      assert.doesNotMatch(readFileSync(`/proc/${child}/environ`, 'utf8'), /pm_|PM2|NODE_CHANNEL|NODE_APP/);
    }
  });

  await t.test('the supervisor goes on as what is installed, in the process that pm2 knows', async () => {
    const serving = processesNamed('ublk/');
    await ok(process.execPath, [cli, 'upgrade', '--self']);
    await isReadable();
    assert.ok(!hasEnded(first));
    assert.deepEqual([pid(), processesNamed('ublk/')], [first, serving]);
  });

  await t.test('reload stops the devices in order and starts them again', async () => {
    await shell(`printf kept | dd of=${LINK} conv=fsync status=none`);
    await pm2('reload', 'ublk-supervisor');
    await isReadable();
    assert.equal(await ok('head', ['-c4', LINK]), 'kept');
    assert.notEqual(pid(), first);
    assert.ok(hasEnded(first));
    assert.match(readFileSync(LOG, 'utf8'), /"msg":"stopped"/);
  });

  await t.test('stop leaves nothing', async () => {
    await pm2('stop', 'ublk-supervisor');
    assert.ok(!existsSync(LINK));
    await assertNothingLeft(RUNTIME_DIR);
  });

  await t.test('A3 a supervisor that was killed is started again, and its devices are served meanwhile', async () => {
    await pm2('start', 'ublk-supervisor');
    await isReadable();
    const serving = processesNamed('ublk/');
    assert.equal(serving.length, 2);
    const [killed, starts] = [pid(), servedTimes()];
    process.kill(killed, 'SIGKILL');
    await waitFor('its end', () => hasEnded(killed));
    await isReadable();
    await isStartedAgain(killed, starts);
    await isReadable();
    assert.deepEqual(processesNamed('ublk/'), serving);
  });

  await t.test('so is one that ended without being asked by pm2', async () => {
    const [stopped, starts] = [pid(), servedTimes()];
    await ok(process.execPath, [cli, 'stop', '--runtime-dir', RUNTIME_DIR]);
    await isStartedAgain(stopped, starts);
    await isReadable();
    await pm2('stop', 'ublk-supervisor');
    await assertNothingLeft(RUNTIME_DIR);
  });
});
