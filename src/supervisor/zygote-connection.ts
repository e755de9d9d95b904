import { spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { SupervisorError } from '../errors.js';
import {
  connectZygote,
  listenSeqpacket,
  zygoteLibrary,
  type ZygoteChannel,
  type ZygoteMessage,
} from '../native/binding.js';

/** What a queue process runs that returns from the preloaded library. */
const QUEUE_PROGRAM = fileURLToPath(new URL('../queue-proc/main.js', import.meta.url));
/** Ample for a process that only forks; a zygote that needs longer hangs. */
const HELLO_DEADLINE_MS = 5_000;

/** A zygote that has said hello. Whoever uses it sets the two callbacks in the same turn. */
export interface ZygoteConnection {
  readonly pid: number;
  /** It was told to end once it serves nothing. */
  readonly expiring: boolean;
  /** By a supervisor that did not start it. */
  readonly found: boolean;
  readonly channel: ZygoteChannel;
  onMessage: (message: ZygoteMessage) => void;
  onClose: () => void;
}

/** Starts a zygote that listens at `socketPath`. `controlFd`: an open /dev/ublk-control, which the zygote inherits. */
export async function startZygote(socketPath: string, controlFd: number): Promise<ZygoteConnection> {
  await rm(socketPath, { force: true });
  const listener = listenSeqpacket(socketPath);
  const child = spawn(process.execPath, [QUEUE_PROGRAM], {
    stdio: ['ignore', 'ignore', 'inherit', listener, controlFd],
    env: { LD_PRELOAD: zygoteLibrary, UBLK_SUPERVISOR_ZYGOTE: '1' },
    // Not in our process group: a terminal's Ctrl-C is for the supervisor, which then stops the devices in order.
    detached: true,
  });
  closeSync(listener);
  const ended = new Promise<never>((_, reject) => {
    child.once('error', reject);
    child.once('exit', (code, signal) => {
      const end = signal ?? `exit code ${String(code)}`;
      const message = `starting the zygote failed: it ended with ${end}; was ${zygoteLibrary} built for this machine?`;
      reject(new SupervisorError(message, { code: 'ZYGOTE' }));
    });
  });
  // Later than the hello nobody waits for it.
  ended.catch(() => undefined);
  try {
    return await Promise.race([connect(socketPath, false), ended]);
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
}

/**
 * The zygote that a supervisor which is gone has left at `socketPath`; null when there is none. Rejects with `TIMEOUT` or
 * `ZYGOTE` when there is one that does not answer, or not as a zygote of this build does.
 */
export async function findZygote(socketPath: string): Promise<ZygoteConnection | null> {
  try {
    return await connect(socketPath, true);
  } catch (error) {
    if (error instanceof SupervisorError && (error.code === 'ENOENT' || error.code === 'ECONNREFUSED')) return null;
    throw error;
  }
}

/** Resolves when the zygote has said hello. */
async function connect(socketPath: string, found: boolean): Promise<ZygoteConnection> {
  let timer: NodeJS.Timeout | undefined;
  const events: Pick<ZygoteConnection, 'onMessage' | 'onClose'> = {
    onMessage: () => undefined,
    onClose: () => undefined,
  };
  const channel = connectZygote(
    socketPath,
    (message) => {
      events.onMessage(message);
    },
    () => {
      events.onClose();
    },
  );
  try {
    const { pid, expiring } = await new Promise<Pick<ZygoteConnection, 'pid' | 'expiring'>>((resolve, reject) => {
      events.onMessage = (message) => {
        if (message.type === 'hello') resolve(message);
      };
      events.onClose = () => {
        reject(
          new SupervisorError('connecting to the zygote failed: it is of another build, or gone', { code: 'ZYGOTE' }),
        );
      };
      timer = setTimeout(() => {
        reject(new SupervisorError('connecting to the zygote failed: no answer (TIMEOUT)', { code: 'TIMEOUT' }));
      }, HELLO_DEADLINE_MS);
    });
    return Object.assign(events, { channel, pid, expiring, found });
  } catch (error) {
    channel.close();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
