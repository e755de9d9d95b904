import { once } from 'node:events';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { request, type IncomingMessage } from 'node:http';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import t, { type Test } from 'tap';
import { createClient } from '../../../src/api/client.js';
import { parseDevice } from '../../../src/config/schema.js';
import { SupervisorError } from '../../../src/errors.js';
import type { Peer } from '../../../src/native/addon/accounts.js';
import { createApiServer, type ApiServer } from '../../../src/api/server.js';
import { Peers } from '../../../src/api/peers.js';
import type { FaultHitStatus, FaultRuleStatus, PlanEntry } from '../../../src/api/status.js';
import type { DeviceStatus, Status, SupervisorApi, SupervisorStatus } from '../../../src/api/status.js';
import { scratch } from '../supervisor/device/status.js';

/** Remembers what it was asked for; knows one device. */
class FakeSupervisor implements SupervisorApi {
  readonly calls: unknown[] = [];
  devices = [scratch];

  status(): Status {
    return { supervisor: { pid: process.pid, version: '0.0.0', kernel: 'none' }, devices: this.devices };
  }

  supervisorStatus(): SupervisorStatus {
    return this.status().supervisor;
  }

  deviceStatuses(): Iterable<DeviceStatus> {
    return this.devices;
  }

  deviceStatus(name: string): DeviceStatus | null {
    return this.devices.find((device) => device.name === name) ?? null;
  }

  async add(device: unknown): Promise<DeviceStatus> {
    const { name } = parseDevice(device);
    this.calls.push(['add', device]);
    if (name === 'scratch') throw new SupervisorError('device scratch exists', { code: 'EXISTS', device: name });
    if (name === 'bug') throw new TypeError('undefined is not a function');
    return Promise.resolve({ ...scratch, name });
  }

  async remove(name: string, options: object): Promise<void> {
    this.calls.push(['remove', name, options]);
    if (name !== 'scratch') throw new SupervisorError('no such device', { code: 'NOT_FOUND', device: name });
    if (!('force' in options && options.force)) {
      throw new SupervisorError('device scratch is mounted on /mnt', { code: 'IN_USE', errno: 16, device: name });
    }
    return Promise.resolve();
  }

  async recover(name: string, options: object): Promise<DeviceStatus> {
    this.calls.push(['recover', name, options]);
    return Promise.resolve(scratch);
  }

  async restart(name: string): Promise<DeviceStatus> {
    this.calls.push(['restart', name]);
    return Promise.resolve(scratch);
  }

  async resize(name: string, options: { readonly size: number }): Promise<DeviceStatus> {
    this.calls.push(['resize', name, options]);
    return Promise.resolve({ ...scratch, size: options.size });
  }

  async lookForPartitions(name: string): Promise<readonly string[]> {
    this.calls.push(['lookForPartitions', name]);
    return Promise.resolve(['/dev/ublkb0p1']);
  }

  addFault(name: string, rule: unknown): string {
    this.calls.push(['addFault', name, rule]);
    return 'fault-1';
  }

  faults(name: string): readonly FaultRuleStatus[] {
    this.calls.push(['faults', name]);
    return [{ id: 'fault-1', do: 'drop', active: true, matches: 2, hits: 1 }];
  }

  removeFault(name: string, id: string | null): void {
    this.calls.push(['removeFault', name, id]);
  }

  faultLog(name: string, after: number): readonly FaultHitStatus[] {
    this.calls.push(['faultLog', name, after]);
    return [];
  }

  async reload(options: { readonly dryRun: boolean }): Promise<readonly PlanEntry[]> {
    this.calls.push(['reload', options]);
    return Promise.resolve([{ device: 'scratch', action: 'keep', changes: [], reason: null }]);
  }

  async upgrade(): Promise<void> {
    this.calls.push(['upgrade']);
    return Promise.resolve();
  }

  async upgradeSelf(): Promise<void> {
    this.calls.push(['upgradeSelf']);
    return Promise.resolve();
  }

  async stop(options: object): Promise<void> {
    this.calls.push(['stop', options]);
    return Promise.resolve();
  }
}

interface Running {
  readonly directory: string;
  readonly path: string;
  readonly supervisor: FakeSupervisor;
  readonly server: ApiServer;
}

/** tap's own directories are too deep for a unix socket. */
async function shortDirectory(t: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'api-'));
  t.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

/** `peer`: whom the server takes its clients for. */
async function serve(t: Test, peer?: Peer): Promise<Running> {
  const directory = await shortDirectory(t);
  const path = join(directory, 'control.sock');
  const supervisor = new FakeSupervisor();
  const server = createApiServer(supervisor, pino({ level: 'silent' }), new Peers(peer && (() => peer)));
  await server.listen(path);
  t.teardown(() => server.close());
  return { directory, path, supervisor, server };
}

interface Reply {
  readonly status: number | undefined;
  readonly body: unknown;
  readonly headers: NodeJS.Dict<string | string[]>;
}

async function ask(
  socketPath: string,
  method: string,
  path: string,
  body?: string,
  type = 'application/json',
): Promise<Reply> {
  const headers = body === undefined ? {} : { 'content-type': type, 'content-length': Buffer.byteLength(body) };
  const sent = request({ socketPath, method, path, headers, agent: false });
  sent.end(body);
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  const chunks: Buffer[] = [];
  for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk);
  const text = Buffer.concat(chunks).toString();
  return { status: response.statusCode, body: JSON.parse(text), headers: response.headers };
}

/** What a raw client gets until the server cuts it off. */
async function converse(path: string, talk: (socket: Socket) => void): Promise<string> {
  const socket = connect(path);
  const chunks: Buffer[] = [];
  socket.on('data', (chunk) => chunks.push(chunk));
  socket.on('error', () => undefined);
  talk(socket);
  await once(socket, 'close').catch(() => undefined);
  return Buffer.concat(chunks).toString('latin1');
}

// The time-outs that half a message runs into are among what is tested.
// Two of these tests wait until a client is cut off, for half a minute each.
t.setTimeout(240_000);

t.test('each route reaches the supervisor', async (t) => {
  const { path, supervisor } = await serve(t);
  const device = { name: 'new', backend: { type: 'ram', size: '1M' } };
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200, body: { devices: [{ name: 'scratch' }] } });
  t.match(await ask(path, 'GET', '/v1/devices/scratch'), { status: 200, body: { path: '/dev/ublkb0' } });
  t.match(await ask(path, 'POST', '/v1/devices', JSON.stringify(device)), { status: 201, body: { name: 'new' } });
  t.match(await ask(path, 'DELETE', '/v1/devices/scratch?force=true&data=remove'), { status: 200 });
  t.match(await ask(path, 'DELETE', '/v1/devices/scratch?force=true'), { status: 200 });
  t.match(await ask(path, 'POST', '/v1/devices/scratch/recover'), { status: 200, body: { state: 'live' } });
  t.match(await ask(path, 'POST', '/v1/devices/scratch/recover?clear-quarantine=true'), { status: 200 });
  t.match(await ask(path, 'POST', '/v1/devices/scratch/restart'), { status: 200, body: { state: 'live' } });
  t.match(await ask(path, 'POST', '/v1/devices/scratch/resize', '{"size":"2MiB"}'), {
    status: 200,
    body: { size: 2 ** 21 },
  });
  t.match(await ask(path, 'POST', '/v1/devices/scratch/partitions'), {
    status: 200,
    body: { partitions: ['/dev/ublkb0p1'] },
  });
  t.match(await ask(path, 'POST', '/v1/reload'), { status: 200, body: { devices: [{ action: 'keep' }] } });
  t.match(await ask(path, 'POST', '/v1/reload', '{"dryRun":true}'), { status: 200 });
  t.match(await ask(path, 'POST', '/v1/upgrade'), { status: 200, body: {} });
  t.match(await ask(path, 'POST', '/v1/upgrade', '{"self":true}'), { status: 200, body: {} });
  t.match(await ask(path, 'POST', '/v1/stop', '{"force":true}'), { status: 200, headers: { connection: 'close' } });
  t.match(await ask(path, 'POST', '/v1/stop'), { status: 200 });
  t.strictSame(supervisor.calls, [
    ['add', device],
    ['remove', 'scratch', { force: true, removeData: true }],
    ['remove', 'scratch', { force: true, removeData: false }],
    ['recover', 'scratch', { clearQuarantine: false }],
    ['recover', 'scratch', { clearQuarantine: true }],
    ['restart', 'scratch'],
    ['resize', 'scratch', { size: 2 ** 21, force: false }],
    ['lookForPartitions', 'scratch'],
    ['reload', { dryRun: false }],
    ['reload', { dryRun: true }],
    ['upgrade'],
    ['upgradeSelf'],
    ['stop', { force: true }],
    ['stop', { force: false }],
  ]);
});

t.test('what the supervisor refuses has a fitting status and its code', async (t) => {
  const { path } = await serve(t);
  const device = (name: string): string => JSON.stringify({ name, backend: { type: 'null', size: 4096 } });
  t.match(await ask(path, 'GET', '/v1/devices/none'), { status: 404, body: { error: { code: 'NOT_FOUND' } } });
  t.match(await ask(path, 'DELETE', '/v1/devices/scratch'), {
    status: 409,
    body: { error: { code: 'IN_USE', errno: 16, device: 'scratch', message: 'device scratch is mounted on /mnt' } },
  });
  t.match(await ask(path, 'POST', '/v1/devices', device('scratch')), {
    status: 409,
    body: { error: { code: 'EXISTS' } },
  });
  t.match(await ask(path, 'POST', '/v1/devices', device('../x')), { status: 400, body: { error: { code: 'CONFIG' } } });
  t.match(await ask(path, 'POST', '/v1/devices'), { status: 400, body: { error: { code: 'CONFIG' } } });
  t.match(await ask(path, 'POST', '/v1/devices', device('bug')), {
    status: 500,
    body: { error: { code: 'INTERNAL' } },
  });
});

t.test('requests that mean nothing are refused without effect', async (t) => {
  const { path, supervisor } = await serve(t);
  const cases: readonly [status: number, method: string, target: string, body?: string, type?: string][] = [
    [404, 'GET', '/'],
    [404, 'GET', '/v2/status'],
    [404, 'GET', '/v1/status/'],
    [404, 'GET', '/v1/devices/../status'],
    [404, 'GET', '/v1/devices/%2e%2e%2fstatus'],
    [404, 'GET', '/v1/devices/%ff'],
    [404, 'GET', '/v1/devices/__proto__'],
    [405, 'PUT', '/v1/status'],
    [405, 'DELETE', '/v1/status'],
    [405, 'GET', '/v1/stop'],
    [400, 'GET', '/v1/status?x=1'],
    [400, 'DELETE', '/v1/devices/scratch?force=yes'],
    [400, 'DELETE', '/v1/devices/scratch?force=true&force=true'],
    [400, 'DELETE', '/v1/devices/scratch?data=shred'],
    [400, 'DELETE', '/v1/devices/scratch?__proto__=1'],
    [400, 'DELETE', '/v1/devices/scratch', '{"force":true}'],
    [400, 'POST', '/v1/stop', '{"force":"true"}'],
    [400, 'POST', '/v1/stop', '{"froce":true}'],
    [400, 'POST', '/v1/devices/scratch/recover', '{}'],
    [400, 'POST', '/v1/devices/scratch/recover?clear-quarantine=1'],
    [400, 'POST', '/v1/devices/scratch/recover?clearQuarantine=true'],
    [400, 'POST', '/v1/devices/scratch/restart', '{}'],
    [400, 'POST', '/v1/devices/scratch/partitions', '{}'],
    [400, 'POST', '/v1/devices/scratch/resize', '{"size":0}'],
    [400, 'POST', '/v1/devices/scratch/resize', '{"size":"1e3"}'],
    [400, 'POST', '/v1/devices/scratch/resize', '{"size":4096,"force":1}'],
    [400, 'POST', '/v1/devices/scratch/resize'],
    [400, 'POST', '/v1/reload', '{"dryrun":true}'],
    [400, 'POST', '/v1/stop', '[]'],
    [400, 'POST', '/v1/stop', 'null'],
    [400, 'POST', '/v1/stop', '{"force":true,"force":false}'],
    [400, 'POST', '/v1/stop', '{"__proto__":{"force":true}}'],
    [400, 'POST', '/v1/stop', '{'],
    [400, 'POST', '/v1/devices', '['.repeat(60_000)],
    [415, 'POST', '/v1/stop', '{"force":true}', 'text/plain'],
    [415, 'POST', '/v1/stop', '{"force":true}', 'application/jsonp'],
    [413, 'POST', '/v1/devices', ' '.repeat(64 * 1024 + 1)],
  ];
  for (const [status, method, target, body, type] of cases) {
    const reply = await ask(path, method, target, body, type);
    t.equal(reply.status, status, `${method} ${target.slice(0, 60)} ${body?.slice(0, 30) ?? ''}`);
    t.match(reply.body, { error: { code: String, message: String } });
  }
  t.match(await ask(path, 'PUT', '/v1/status'), { headers: { allow: 'GET' } });
  t.strictSame(supervisor.calls, []);
  t.equal(({} as { force?: unknown }).force, undefined);
});

t.test('a body without a length is counted too', async (t) => {
  const { path, supervisor } = await serve(t);
  const text = await converse(path, (socket) => {
    socket.write(
      'POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n',
    );
    const chunk = `8000\r\n${' '.repeat(0x8000)}\r\n`;
    socket.write(chunk.repeat(8));
  });
  t.match(text, /^HTTP\/1\.1 413 /);
  t.strictSame(supervisor.calls, []);
});

t.test('a reader may look and nothing else', async (t) => {
  const { path, supervisor } = await serve(t, { uid: 100_000, administrates: false });
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200, body: { devices: [{ name: 'scratch' }] } });
  t.match(await ask(path, 'GET', '/v1/devices/scratch'), { status: 200 });
  const forbidden = { error: { code: 'FORBIDDEN', message: /^\w+ is for root only; [^\n]*$/ } };
  for (const [method, target, body] of [
    ['POST', '/v1/stop', '{"force":true}'],
    ['POST', '/v1/devices', ' '.repeat(2 ** 12)],
    ['POST', '/v1/devices/scratch/recover'],
    ['DELETE', '/v1/devices/scratch?force=true'],
    ['PUT', '/v1/none'],
  ] as const) {
    t.match(await ask(path, method, target, body), { status: 403, body: forbidden, headers: { connection: 'close' } });
  }
  t.strictSame(supervisor.calls, []);
});

t.test('F1 a reader who asks without pause is told to wait', async (t) => {
  const { path } = await serve(t, { uid: 100_000, administrates: false });
  const replies = await Promise.all(
    Array.from({ length: 6 }, async () => {
      const statuses: unknown[] = [];
      for (let i = 0; i < 30; i++) statuses.push((await ask(path, 'GET', '/v1/status')).status);
      return statuses;
    }),
  );
  t.strictSame([...new Set(replies.flat())].sort(), [200, 429]);
});

t.test('one connection serves several requests, but not at once', async (t) => {
  const { path } = await serve(t);
  const get = 'GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n';
  const inTurn = await converse(path, (socket) => {
    let answers = 0;
    socket.on('data', () => {
      answers += 1;
      if (answers < 3) socket.write(get);
      else socket.destroy();
    });
    socket.write(get);
  });
  t.equal(inTurn.match(/HTTP\/1\.1 200 /g)?.length, 3);
  const atOnce = await converse(path, (socket) => socket.write(get.repeat(2000)));
  t.ok((atOnce.match(/HTTP\/1\.1 200 /g)?.length ?? 0) <= 1);
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200 });
});

t.test('F1 who does not take an answer is cut off', { timeout: 120_000 }, async (t) => {
  const { path, supervisor } = await serve(t);
  // More than a socket holds.
  supervisor.devices = Array.from({ length: 4000 }, () => scratch);
  const socket = connect(path);
  socket.on('error', () => undefined).pause();
  socket.write('GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n');
  const start = performance.now();
  const closed = once(socket, 'close');
  await sleep(32_000);
  // What the kernel still holds for us, and then the end.
  socket.resume();
  await closed;
  const elapsed = performance.now() - start;
  t.ok(socket.bytesRead < JSON.stringify(supervisor.status()).length, `${socket.bytesRead} bytes`);
  t.ok(elapsed < 60_000, `${Math.round(elapsed)} ms`);
});

t.test('F1 garbage ends the connection', async (t) => {
  const { path, supervisor } = await serve(t);
  for (const garbage of [
    '\0\0\0\0\0\0\0\0',
    'hello\n',
    '{"force":true}\n',
    '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
    'POST /v1/stop HTTP/1.1\r\nContent-Length: -1\r\n\r\n',
  ]) {
    t.match(await converse(path, (socket) => socket.write(garbage)), /^HTTP\/1\.1 400 /, JSON.stringify(garbage));
  }
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200 });
  t.strictSame(supervisor.calls, []);
});

t.test('F1 an endless line is cut off, and costs no memory', async (t) => {
  const { path } = await serve(t);
  const before = process.memoryUsage().rss;
  let written = 0;
  const block = Buffer.alloc(2 ** 16, 'a');
  const text = await converse(path, (socket) => {
    const more = (): void => {
      while (written < 2 ** 30 && !socket.destroyed) {
        written += block.length;
        if (!socket.write(block)) {
          socket.once('drain', more);
          return;
        }
      }
    };
    socket.write('GET /');
    more();
  });
  t.match(text, /^(HTTP\/1\.1 431 .*)?/);
  t.ok(written < 2 ** 23, `cut off after ${written} bytes`);
  t.ok(process.memoryUsage().rss - before < 2 ** 26);
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200 });
});

t.test('F1 half a message and silence are cut off in time, without effect', { timeout: 120_000 }, async (t) => {
  const { path, supervisor } = await serve(t);
  const halves = [
    '',
    'GET /v1/sta',
    'POST /v1/stop HTTP/1.1\r\nHost: x\r\n',
    'POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"force',
  ];
  const start = performance.now();
  await Promise.all(halves.map((half) => converse(path, (socket) => socket.write(half))));
  const elapsed = performance.now() - start;
  t.ok(elapsed > 15_000 && elapsed < 45_000, `${Math.round(elapsed)} ms`);
  t.strictSame(supervisor.calls, []);
});

t.test('a client that leaves in the middle of its body has no effect', async (t) => {
  const { path, supervisor } = await serve(t);
  const head = 'POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n';
  await converse(path, (socket) => socket.write(`${head}{"force":`, () => socket.destroy()));
  await sleep(50);
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200 });
  t.strictSame(supervisor.calls, []);
});

t.test('F1 of 100 connections 64 are kept, and room comes back', async (t) => {
  const { path } = await serve(t);
  const closed = new Set<Socket>();
  const sockets = Array.from({ length: 100 }, () => {
    const socket = connect(path);
    socket.on('error', () => undefined).on('close', () => closed.add(socket));
    return socket.resume();
  });
  await sleep(500);
  t.equal(closed.size, 36);
  for (const socket of sockets) socket.destroy();
  await sleep(200);
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200 });
});

t.test('the socket is for its owner and group, whatever the umask', async (t) => {
  const umask = process.umask(0);
  t.teardown(() => process.umask(umask));
  const { path } = await serve(t);
  const { mode } = await stat(path);
  t.equal(mode & 0o777, 0o660);
  t.equal(process.umask(0), 0, 'the umask is as before');
});

t.test('a stale socket is replaced, a living one and other files are not', async (t) => {
  const { path, directory, server } = await serve(t);
  const second = createApiServer(new FakeSupervisor(), pino({ level: 'silent' }));
  await t.rejects(second.listen(path), { code: 'RUNNING' });
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200 }, 'the first is unharmed');
  await server.close();
  await t.rejects(stat(path), { code: 'ENOENT' }, 'closing removes the socket');

  const file = join(directory, 'file');
  await writeFile(file, 'precious');
  await t.rejects(second.listen(file), { code: 'RUNTIME_DIR', message: /not a socket/ });
  await t.rejects(second.listen(join(directory, 'none', 'control.sock')), { code: 'RUNTIME_DIR' });
  await t.rejects(second.listen(`/tmp/${'x'.repeat(108)}`), { code: 'RUNTIME_DIR', message: /longer than 107 bytes/ });

  await leaveStaleSocket(path);
  await second.listen(path);
  t.teardown(() => second.close());
  t.match(await ask(path, 'GET', '/v1/status'), { status: 200 });
});

/** Binds in a process that is killed, as a crash would leave it. */
async function leaveStaleSocket(path: string): Promise<void> {
  const { spawn } = await import('node:child_process');
  const code = `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  await once(spawn(process.execPath, ['-e', code], { env: {} }), 'exit');
}

t.test('closing answers what was asked and then ends', async (t) => {
  const { path, server } = await serve(t);
  const idle = connect(path);
  idle.on('error', () => undefined).resume();
  await once(idle, 'connect');
  const start = performance.now();
  await server.close();
  t.ok(performance.now() - start < 5_000);
  await t.rejects(createClient(join(path, '..')).status(), { code: 'NOT_RUNNING' });
});

t.test('the client says who is missing and passes on what the supervisor says', async (t) => {
  const { directory, supervisor } = await serve(t);
  const client = createClient(directory);
  t.match(await client.status(), { devices: [{ name: 'scratch' }] });
  t.match(await client.add({ name: 'new', backend: { type: 'null', size: 4096 } }), { name: 'new' });
  await client.remove('scratch', { force: true, removeData: false });
  await t.rejects(client.remove('a/../b', { force: true, removeData: true }), { code: 'NOT_FOUND' });
  t.strictSame(supervisor.calls.at(-1), ['remove', 'a/../b', { force: true, removeData: true }]);
  await t.rejects(client.remove('scratch', { force: false, removeData: false }), { code: 'IN_USE', errno: 16 });
  await t.rejects(createClient(`${directory}/none`).status(), {
    code: 'NOT_RUNNING',
    message: /no .*\/none\/control\.sock\)/,
  });

  const other = join(await shortDirectory(t), 'control.sock');
  await leaveStaleSocket(other);
  await t.rejects(createClient(join(other, '..')).status(), { code: 'NOT_RUNNING', message: /nobody listens/ });
});

t.test('a socket of another program is not mistaken for a supervisor', async (t) => {
  const directory = await shortDirectory(t);
  const server = createServer((socket) => socket.end('220 mail ready\r\n'));
  server.listen(join(directory, 'control.sock'));
  t.teardown(() => server.close());
  await t.rejects(createClient(directory).status(), { message: /talking to the supervisor .* failed/ });
});
