import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { mock } from 'node:test';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { sendDatagram } from '../../../../src/native/addon/notify.js';
import { DeviceOverview } from '../../../../src/supervisor/service/device-overview.js';
import { Notifier, takeNotifier, type NotifierOptions } from '../../../../src/supervisor/service/notify.js';

/** sd_notify(3) against a datagram socket of another process, which Node cannot make. */

const receiver = `
import json, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1].replace('@', '\\0', 1))
print(json.dumps('bound'), flush=True)
sys.stdin.readline()
while True: print(json.dumps(s.recv(4096).decode()), flush=True)
`;

interface Receiver {
  readonly address: string;
  /** Begins to receive; before, messages wait in its socket. */
  readonly listen: () => void;
  readonly next: () => Promise<string>;
}

const directory = await mkdtemp(join(tmpdir(), 'notify-'));
t.teardown(() => rm(directory, { recursive: true }));
let sockets = 0;

async function receive(t: Test, abstract = false): Promise<Receiver> {
  const path = join(directory, String(sockets++));
  const address = abstract ? `@${path}` : path;
  const child = execa('python3', ['-c', receiver, address], { reject: false, stdout: ['pipe'], buffer: false });
  t.teardown(async () => {
    child.kill('SIGKILL');
    await child;
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const next = async (): Promise<string> => JSON.parse(String((await lines.next()).value)) as string;
  t.equal(await next(), 'bound');
  return { address, next, listen: () => child.stdin.write('\n') };
}

/** Of its own for each test: services have no end but their process'. */
function keepLog(): { logged: string[]; log: NotifierOptions['log'] } {
  const logged: string[] = [];
  const say = (_fields: object, message: string): void => void logged.push(message);
  return { logged, log: { info: say, warn: say, error: say } };
}

const notifier = (options: Partial<NotifierOptions>): Notifier =>
  new Notifier({ socket: null, watchdogMs: null, tellParent: null, log: keepLog().log, ...options });

t.test('a service from its start to its end', async (t) => {
  const { address, listen, next } = await receive(t);
  listen();
  const told: string[] = [];
  const service = notifier({ socket: address, tellParent: (message) => told.push(message) });
  await service.whileReloading(() => Promise.resolve());
  service.deviceChanged('a', 'starting');
  t.equal(await next(), 'STATUS=0 of 1 device live: a is starting', 'and nothing of a reload before it was ready');
  service.deviceChanged('a', 'live');
  t.equal(await next(), 'STATUS=1 device live');
  t.same(told, []);
  service.ready();
  t.equal(await next(), 'READY=1\nSTATUS=1 device live');
  t.same(told, ['ready']);
  service.deviceChanged('a', 'live');
  const before = process.hrtime.bigint() / 1000n;
  await service.whileReloading(() => Promise.resolve());
  const [reloading, time] = (await next()).split('\nMONOTONIC_USEC=');
  t.equal(reloading, 'RELOADING=1', 'and nothing of a state that is as it was');
  t.ok(BigInt(time ?? 0) >= before && BigInt(time ?? 0) <= process.hrtime.bigint() / 1000n);
  t.equal(await next(), 'READY=1\nSTATUS=1 device live');
  await t.rejects(
    service.whileStopping(() => Promise.reject(new Error('it is in use'))),
    { message: 'it is in use' },
  );
  service.stopPutOff('it is in use');
  await service.whileStopping(() => Promise.resolve());
  service.deviceChanged('a', 'gone');
  t.equal(await next(), 'STOPPING=1');
  t.equal(await next(), 'STATUS=waiting to stop: it is in use');
  t.equal(await next(), 'STATUS=no devices', 'after STOPPING=1 once');
});

t.test('a stop that takes long asks for time', async (t) => {
  const { address, listen, next } = await receive(t);
  listen();
  let finish = (): void => undefined;
  const stopping = notifier({ socket: address }).whileStopping(() => new Promise((resolve) => (finish = resolve)));
  t.equal(await next(), 'STOPPING=1');
  t.equal(await next(), 'EXTEND_TIMEOUT_USEC=30000000');
  finish();
  await stopping;
});

t.test('a stop that was put off asks for no time until a device stops', async (t) => {
  const { address, listen, next } = await receive(t);
  listen();
  mock.timers.enable({ apis: ['setInterval'] });
  const service = notifier({ socket: address });
  service.stopPutOff('it is in use');
  let finish = (): void => undefined;
  const stopping = service.whileStopping(() => new Promise((resolve) => (finish = resolve)));
  mock.timers.tick(20_000);
  service.deviceChanged('a', 'stopping');
  mock.timers.tick(2_000);
  mock.timers.reset();
  finish();
  await stopping;
  t.equal(await next(), 'STATUS=waiting to stop: it is in use');
  t.equal(await next(), 'STOPPING=1');
  t.equal(await next(), 'STATUS=0 of 1 device live: a is stopping', 'nothing before it');
  t.equal(await next(), 'EXTEND_TIMEOUT_USEC=30000000');
});

t.test('signs of life at half the interval, but not while a device is lost sight of', async (t) => {
  const { address, listen, next } = await receive(t);
  listen();
  let now = 0;
  const { logged, log } = keepLog();
  const service = notifier({ socket: address, watchdogMs: 100, log, now: () => now });
  service.deviceChanged('a', 'recovering');
  service.deviceChanged('b', 'degraded');
  await next();
  await next();
  service.ready();
  t.match(await next(), /^READY=1\n/);
  service.keepAlive();
  for (let beat = 0; beat < 3; beat++) t.equal(await next(), 'WATCHDOG=1');
  now = 300_001;
  // What is under way may still arrive; the log says when they end.
  while (logged.length === 0) await new Promise(setImmediate);
  t.same(logged, ['a: no progress; no WATCHDOG=1'], 'of a; b waits for a person');
  service.deviceChanged('a', 'degraded');
  for (let text = ''; text !== 'STATUS=0 of 2 devices live: a is degraded, b is degraded'; text = await next());
  t.equal(await next(), 'WATCHDOG=1');
});

t.test('a service manager that does not read gets everything later, in order', async (t) => {
  const { address, listen, next } = await receive(t, true);
  let sent = 0;
  const fill = (): void => {
    for (; ; sent++) sendDatagram(address, 'X=1');
  };
  t.throws(fill, { code: 'EAGAIN' });
  const { logged, log } = keepLog();
  const service = notifier({ socket: address, log });
  service.ready();
  await service.whileReloading(() => Promise.resolve());
  listen();
  while (sent-- > 0) await next();
  t.equal(await next(), 'READY=1\nSTATUS=no devices');
  t.match(await next(), /^RELOADING=1\n/);
  t.equal(await next(), 'READY=1\nSTATUS=no devices');
  t.same(logged, []);
});

t.test('a service manager that is not there is complained about once', async (t) => {
  const { logged, log } = keepLog();
  const service = notifier({ socket: join(directory, 'nobody'), log });
  service.ready();
  await service.whileReloading(() => Promise.resolve());
  t.same(logged, ['notifying the service manager failed: no such file or directory (ENOENT)']);
  t.throws(() => sendDatagram(`/${'x'.repeat(108)}`, ''), { code: 'ENAMETOOLONG' });
});

t.test('the environment is read once', async (t) => {
  const { address, listen, next } = await receive(t);
  listen();
  const enter = (variables: Record<string, string>): void => void Object.assign(process.env, variables);
  const { logged, log } = keepLog();
  enter({ NOTIFY_SOCKET: address, WATCHDOG_USEC: '100000', WATCHDOG_PID: String(process.pid) });
  const ours = takeNotifier(log);
  ours.ready();
  t.equal(await next(), 'READY=1\nSTATUS=no devices');
  ours.keepAlive();
  t.equal(await next(), 'WATCHDOG=1');
  const names = ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID'];
  t.same(
    names.filter((name) => name in process.env),
    [],
  );

  const other = await receive(t);
  other.listen();
  enter({ NOTIFY_SOCKET: other.address, WATCHDOG_USEC: '1000', WATCHDOG_PID: '1' });
  const service = takeNotifier(log);
  service.ready();
  t.equal(await other.next(), 'READY=1\nSTATUS=no devices');
  service.keepAlive();
  service.deviceChanged('a', 'live');
  t.equal(await other.next(), 'STATUS=1 device live', 'with no WATCHDOG=1: it is for pid 1');

  enter({ NOTIFY_SOCKET: 'vsock:2:1234' });
  const managed = takeNotifier(log).managed;
  t.same(logged, ['NOTIFY_SOCKET is not the address of a unix socket; ignored']);
  t.equal(managed, process.send !== undefined);
});

t.test('a service manager that is busy misses no READY=1, however many devices change meanwhile', async (t) => {
  const { address, listen, next } = await receive(t);
  const service = notifier({ socket: address });
  for (let i = 0; i < 500; i++) service.deviceChanged(`d${i}`, 'live');
  service.ready();
  listen();
  let message = await next();
  while (!message.startsWith('READY=1')) message = await next();
  t.equal(message, 'READY=1\nSTATUS=500 devices live');
});

t.test('what STATUS= says', (t) => {
  const overview = new DeviceOverview(() => 0);
  t.equal(overview.line(), 'no devices');
  for (const name of ['a', 'b', 'c', 'd', 'e']) overview.changed(name, 'live');
  t.equal(overview.line(), '5 devices live');
  overview.changed('b', 'failed');
  t.equal(overview.line(), '4 of 5 devices live: b is failed');
  for (const name of ['a', 'c', 'd']) overview.changed(name, 'recovering');
  t.equal(overview.line(), '1 of 5 devices live: b is failed, a is recovering, c is recovering, 1 more are not live');
  t.end();
});
