import { lstat, unlink } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { connect, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { SupervisorError, errnoOf, messageOf, reasonOf } from '../errors.js';
import { answer, failure, JsonPieces, type ApiAnswer } from './routes.js';
import type { Log } from '../log/log.js';
import { Peers } from './peers.js';
import type { SupervisorApi } from './status.js';
import { jsonText, WholeStatus } from './whole-status.js';

const MOST_CONNECTIONS = 64;
const LARGEST_BODY = 64 * 1024;
const LARGEST_HEADERS = 8 * 1024;
/**
 * Counted from when the connection was taken: who came as a hundred devices died waits longer than ten seconds until their
 * request is read.
 */
const REQUEST_TIMEOUT_MS = 30_000;
/** How long a client may take to read an answer, which holds memory meanwhile. */
const ANSWER_TIMEOUT_MS = 30_000;
/** Bytes of `sockaddr_un.sun_path` less the final NUL; libuv truncates silently beyond it. */
const LONGEST_SOCKET_PATH = 107;
/** After `close`, how long requests that are being answered may take. */
const CLOSE_GRACE_MS = 2_000;

export interface ApiServer {
  /** Replaces a socket that no process listens on. Rejects with `RUNNING` when one does, else with `RUNTIME_DIR`. */
  listen(path: string): Promise<void>;
  /** Ends idle connections at once, others when they are answered; removes the socket. */
  close(): Promise<void>;
}

/** The control API, HTTP and JSON on a unix socket; documented in ublk-supervisor(8), CONTROL API. */
export function createApiServer(api: SupervisorApi, log: Log, peers: Peers = new Peers()): ApiServer {
  const answering = new WeakSet<Socket>();
  const wholeStatus = new WholeStatus(api);
  const server = createServer(
    {
      maxHeaderSize: LARGEST_HEADERS,
      headersTimeout: REQUEST_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: 5_000,
      keepAliveTimeout: 5_000,
    },
    (request, response) => {
      const { socket } = request;
      // One at a time. Node hands over everything that came in one piece, and would keep an answer to each of it.
      if (answering.has(socket)) {
        socket.destroy();
        return;
      }
      answering.add(socket);
      response.once('close', () => answering.delete(socket));
      serve({ api, wholeStatus, log, peers }, request, response).catch((error: unknown) => {
        log.warn({ err: error }, 'a control request was not answered');
        request.destroy();
      });
    },
  );
  server.maxConnections = MOST_CONNECTIONS;
  server.on('clientError', refuseGarbage);
  server.on('connection', (socket: Socket) => {
    if (!peers.admit(socket)) socket.destroy();
  });
  return { listen: (path) => listen(server, path), close: () => close(server) };
}

interface Serving {
  readonly api: SupervisorApi;
  readonly wholeStatus: WholeStatus;
  readonly log: Log;
  readonly peers: Peers;
}

async function serve(
  { api, wholeStatus, log, peers }: Serving,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const { method = '', url: target = '', socket } = request;
  const refusal = refusalFor(peers, method, socket);
  if (refusal) {
    send(response, failure(refusal, { connection: 'close' }));
    return;
  }
  const body = await readBody(request);
  const result =
    body === undefined
      ? failure(new SupervisorError(`body: larger than ${LARGEST_BODY} bytes`, { code: 'TOO_LARGE' }))
      : await answer(api, wholeStatus, { method, target, contentType: request.headers['content-type'], body });
  if (result.unexpected !== undefined) log.error({ err: result.unexpected, method, target }, 'control request failed');
  if (method !== 'GET') log.info({ method, target, status: result.status }, 'control request');
  send(response, result);
  // The rest of a body that we do not want is not read either.
  if (body === undefined) response.once('finish', () => request.destroy());
}

/** undefined: the request is allowed. */
function refusalFor(peers: Peers, method: string, socket: Socket): SupervisorError | undefined {
  if (!peers.allows(socket)) {
    return new SupervisorError('too many requests; ask less often', { code: 'TOO_MANY' });
  }
  const role = peers.roleOf(socket);
  if (role === 'admin' || (role === 'reader' && method === 'GET')) return undefined;
  if (role === 'nobody') {
    return new SupervisorError(
      `${method} is not for root without CAP_SYS_ADMIN, as in a container or in a queue process; ask as root of this machine`,
      { code: 'FORBIDDEN' },
    );
  }
  return new SupervisorError(`${method} is for root only; members of the socket's group may GET`, {
    code: 'FORBIDDEN',
  });
}

/** undefined: it is too large. Rejects when the connection ends first. */
async function readBody(request: IncomingMessage): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  let length = 0;
  if (Number(request.headers['content-length'] ?? 0) > LARGEST_BODY) return undefined;
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > LARGEST_BODY) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function send(response: ServerResponse, { status, body, headers }: ApiAnswer): void {
  const pieces = body instanceof JsonPieces ? body.pieces : [Buffer.from(`${jsonText(body)}\n`)];
  response.writeHead(status, {
    'content-type': 'application/json; charset=utf-8',
    'content-length': pieces.reduce((sum, { length }) => sum + length, 0),
    'cache-control': 'no-store',
    ...headers,
  });
  for (const piece of pieces) response.write(piece);
  response.end();
  const cutOff = setTimeout(() => response.destroy(), ANSWER_TIMEOUT_MS);
  response.once('close', () => clearTimeout(cutOff));
}

/** Not HTTP, too large a header, too slow: told so if it still listens, and cut off. */
function refuseGarbage(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (socket.writable) {
    const status = {
      HPE_HEADER_OVERFLOW: '431 Request Header Fields Too Large',
      ERR_HTTP_REQUEST_TIMEOUT: '408 Request Timeout',
    }[error.code ?? ''];
    socket.write(`HTTP/1.1 ${status ?? '400 Bad Request'}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
  }
  socket.destroy();
}

async function listen(server: Server, path: string): Promise<void> {
  if (Buffer.byteLength(path) > LONGEST_SOCKET_PATH) {
    throw cannotListen(path, `the path is longer than ${LONGEST_SOCKET_PATH} bytes; use a shorter --runtime-dir`);
  }
  await removeStaleSocket(path);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(cannotListen(path, reasonOf(error), error)));
    // bind(2) happens inside this call, so the socket never exists with a wider mode than 0660.
    const umask = process.umask(0o117);
    try {
      server.listen(path, resolve);
    } finally {
      process.umask(umask);
    }
  });
}

async function removeStaleSocket(path: string): Promise<void> {
  try {
    const found = await lstat(path);
    if (!found.isSocket()) throw cannotListen(path, 'something that is not a socket is in its place; remove it');
    if (await somebodyListens(path)) {
      throw new SupervisorError(`a supervisor is running already: ${path} answers`, { code: 'RUNNING' });
    }
    await unlink(path);
  } catch (error) {
    if (error instanceof SupervisorError) throw error;
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) {
      throw cannotListen(path, reasonOf(error), error);
    }
  }
}

function somebodyListens(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const settle = (answered: boolean) => () => {
      socket.destroy();
      resolve(answered);
    };
    socket.once('connect', settle(true)).once('error', (error: NodeJS.ErrnoException) => {
      // With a full backlog (EAGAIN) a process listens, too.
      settle(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT')();
    });
  });
}

function cannotListen(path: string, reason: string, cause?: unknown): SupervisorError {
  return new SupervisorError(`listening on ${path} failed: ${reason}`, {
    code: 'RUNTIME_DIR',
    errno: errnoOf(cause),
    cause,
  });
}

async function close(server: Server): Promise<void> {
  if (!server.listening) return;
  const closed = new Promise<void>((resolve, reject) => {
    server.close((error) => {
      if (error) reject(new SupervisorError(`closing the control socket failed: ${messageOf(error)}`, { code: 'EIO' }));
      else resolve();
    });
  });
  const cutOff = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS);
  try {
    await closed;
  } finally {
    clearTimeout(cutOff);
  }
}
