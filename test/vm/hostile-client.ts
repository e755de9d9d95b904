import { connect, type Socket } from 'node:net';

/**
 * A program: does to the control socket at argv[2] what a hostile or broken client may do, as whoever runs it. Prints
 * what came of it as JSON.
 */

const path = process.argv[2] ?? '';
const GIB = 2 ** 30;
const json = 'Content-Type: application/json\r\n';
const get = 'GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n';

interface Outcome {
  /** The status lines of the answers. */
  readonly statuses: readonly string[];
  readonly written: number;
}

/** Until the supervisor ends the connection. */
function converse(talk: (socket: Socket) => void): Promise<Outcome> {
  return new Promise((resolve) => {
    const socket = connect(path);
    let text = '';
    socket.setEncoding('latin1').on('data', (part: string) => {
      text = (text + part).slice(0, 2 ** 16);
    });
    socket.on('error', () => undefined);
    socket.once('close', () =>
      resolve({ statuses: text.match(/^HTTP\/1\.1 \d+/gm) ?? [], written: socket.bytesWritten }),
    );
    talk(socket);
  });
}

/** Writes `bytes` of a line that does not end, as fast as they are taken. */
function stream(socket: Socket, bytes: number): void {
  const block = Buffer.alloc(2 ** 16, 'a');
  const more = (): void => {
    while (socket.writable && socket.bytesWritten < bytes) {
      if (socket.write(block)) continue;
      socket.once('drain', more);
      return;
    }
  };
  more();
}

function post(target: string, body: string): Promise<Outcome> {
  return converse((socket) => {
    const head = `POST ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${json}`;
    socket.write(`${head}Content-Length: ${body.length}\r\n\r\n${body}`);
  });
}

/** Asks without ever reading an answer. */
function askOnly(): Promise<Outcome> {
  return converse((socket) => {
    socket.pause();
    const timer = setInterval(() => socket.write(get), 2);
    // A socket that is not read from does not see its end.
    setTimeout(() => socket.resume(), 15_000);
    socket.once('close', () => clearInterval(timer));
  });
}

/** Connections that say nothing, until the supervisor has closed all of them. */
async function flood(count: number): Promise<void> {
  await Promise.all(
    Array.from({ length: count }, () => {
      const socket = connect(path)
        .on('error', () => undefined)
        .resume();
      return new Promise((resolve) => socket.once('close', resolve));
    }),
  );
}

const [garbage, line, body, half, silence, unread, atOnce] = await Promise.all([
  converse((socket) => socket.write('\0\x16\x03\x01 garbage\r\n\r\n')),
  converse((socket) => {
    socket.write('GET /');
    stream(socket, GIB);
  }),
  converse((socket) => {
    socket.write(`POST /v1/devices HTTP/1.1\r\nHost: x\r\n${json}Content-Length: ${GIB}\r\n\r\n`);
    stream(socket, GIB);
  }),
  converse((socket) => socket.write(`POST /v1/stop HTTP/1.1\r\nHost: x\r\n${json}Content-Length: 14\r\n\r\n{"fo`)),
  converse(() => undefined),
  askOnly(),
  converse((socket) => socket.write(get.repeat(2000))),
]);
const deep = await post('/v1/devices', '['.repeat(60_000));
const prototype = await post('/v1/stop', '{"__proto__":{"force":true}}');
await flood(2000);
process.stdout.write(JSON.stringify({ garbage, line, body, half, silence, unread, atOnce, deep, prototype }));
