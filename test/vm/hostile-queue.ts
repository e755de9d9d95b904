import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { connectSeqpacket } from '../../src/native/addon/system.js';
import { openZygoteChannel } from '../../src/native/addon/zygote-channel.js';

/**
 * A program that a backend's queue process runs: tries what a process of root's without any capability may try, to the
 * supervisor whose runtime directory is argv[2], and to the processes in argv[3], numbers with commas between. Prints what
 * came of it as JSON.
 */

const [, , directory = '', others = ''] = process.argv;

/** The answer's status; or why there is none. */
function ask(method: string, path: string): Promise<number | string> {
  return new Promise((resolve) => {
    const headers = method === 'POST' ? { 'content-type': 'application/json', 'content-length': 2 } : {};
    request({ socketPath: join(directory, 'control.sock'), method, path, headers }, (response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    })
      .on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
      .end(method === 'POST' ? '{}' : '');
  });
}

/** What the zygote says first; null: it ends the connection. */
function greet(path: string): Promise<string | null> {
  return new Promise((resolve) => {
    const channel = openZygoteChannel(
      connectSeqpacket(path),
      ({ type }) => {
        channel.close();
        resolve(type);
      },
      () => resolve(null),
    );
  });
}

/** undefined: it succeeded. */
function codeOf(attempt: () => unknown): string | undefined {
  try {
    attempt();
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code;
  }
}

const pids = others.split(',').map(Number);
const zygotes = readdirSync(directory).filter((name) => /^zygote.*\.sock$/.test(name));
const outcome = {
  capabilities: /^CapEff:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1],
  status: await ask('GET', '/v1/status'),
  stop: await ask('POST', '/v1/stop'),
  zygotes: await Promise.all(zygotes.map((name) => greet(join(directory, name)))),
  signals: pids.map((pid) => codeOf(() => process.kill(pid, 'SIGCONT'))),
  memory: pids.map((pid) => codeOf(() => closeSync(openSync(`/proc/${pid}/mem`, 'r')))),
};
process.stdout.write(JSON.stringify(outcome));
