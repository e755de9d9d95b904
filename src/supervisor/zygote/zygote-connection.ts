import { SupervisorError } from '../../errors.js';
import { connectSeqpacket } from '../../native/addon/system.js';
import { errnoName } from '../../errors.js';
import { openZygoteChannel, type ZygoteChannel, type ZygoteMessage } from '../../native/addon/zygote-channel.js';
import { afterDeadline } from '../../timing/deadline.js';

/** Ample for a process that only forks; a zygote that needs longer hangs. */
const HELLO_DEADLINE_MS = 10_000;

/** A zygote that has said hello. The caller sets the two callbacks in the turn in which it gets the connection. */
export interface ZygoteConnection {
  readonly pid: number;
  readonly channel: ZygoteChannel;
  onMessage: (message: ZygoteMessage) => void;
  onClose: () => void;
}

/**
 * The zygote that a supervisor which is gone has left at `socketPath`; null when there is none. Rejects with `TIMEOUT` or
 * `ZYGOTE` when there is one that does not answer, or not as a zygote of this build does.
 */
export async function findZygote(socketPath: string): Promise<ZygoteConnection | null> {
  try {
    return await greetZygote(connectSeqpacket(socketPath));
  } catch (error) {
    if (error instanceof SupervisorError && (error.code === 'ENOENT' || error.code === 'ECONNREFUSED')) return null;
    throw error;
  }
}

/** Resolves when the zygote has said hello. Takes `fd` over. */
export async function greetZygote(fd: number, deadlineMs = HELLO_DEADLINE_MS): Promise<ZygoteConnection> {
  let callOff = (): void => undefined;
  const events: Pick<ZygoteConnection, 'onMessage' | 'onClose'> = {
    onMessage: () => undefined,
    onClose: () => undefined,
  };
  const channel = openZygoteChannel(
    fd,
    (message) => events.onMessage(message),
    () => events.onClose(),
  );
  try {
    const pid = await new Promise<number>((resolve, reject) => {
      events.onMessage = (message) => {
        if (message.type !== 'hello') return;
        if (message.error === 0) resolve(message.pid);
        else {
          const code = errnoName(message.error);
          reject(new SupervisorError(`forking a zygote failed (${code})`, { code, errno: message.error }));
        }
      };
      events.onClose = () =>
        reject(
          new SupervisorError('connecting to the zygote failed: it is of another build, or gone', { code: 'ZYGOTE' }),
        );
      callOff = afterDeadline(deadlineMs, () =>
        reject(new SupervisorError('connecting to the zygote failed: no answer (TIMEOUT)', { code: 'TIMEOUT' })),
      );
    });
    return Object.assign(events, { channel, pid });
  } catch (error) {
    channel.close();
    throw error;
  } finally {
    callOff();
  }
}
