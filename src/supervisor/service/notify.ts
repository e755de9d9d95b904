import { reasonOf, SupervisorError } from '../../errors.js';
import { sendDatagram } from '../../native/addon/notify.js';
import type { Log } from '../../log/log.js';
import { DeviceOverview } from './device-overview.js';
import type { DeviceState } from '../../api/status.js';

/** How much longer each beat of a long stop asks for, and how often it does. */
const STOP_EXTENSION_US = 30_000_000;
const STOP_BEAT_MS = 2_000;
/** Until a service manager that does not read is tried again, and how many messages wait for it meanwhile. */
const RETRY_MS = 200;
const MOST_WAITING = 64;
/** Bytes of `sockaddr_un.sun_path` less the final NUL. */
const LONGEST_ADDRESS = 107;

export interface NotifierOptions {
  /** NOTIFY_SOCKET: a path or `@` and an abstract name; null: no service manager listens. */
  readonly socket: string | null;
  /** How often the service manager wants a sign of life at least; null: it does not. */
  readonly watchdogMs: number | null;
  /** Tells a process manager that is our parent; null: there is none. */
  readonly tellParent: ((message: string) => void) | null;
  /** The variables that say all this. */
  readonly environment?: Readonly<Record<string, string>>;
  readonly log: Log;
  /** Milliseconds of a monotonic clock. */
  readonly now?: () => number;
}

/**
 * Tells who started us how we are: systemd by sd_notify(3), pm2 by its `ready` message. Sends without waiting, since a
 * service manager that hangs is no reason to.
 */
export class Notifier {
  /** A service manager started us. It kills what does not stop in time, so a stop cannot be refused, only put off. */
  readonly managed: boolean;
  /** What a successor in this process has to find in its environment. */
  readonly environment: Readonly<Record<string, string>>;
  readonly #socket: string | null;
  readonly #watchdogMs: number | null;
  readonly #tellParent: ((message: string) => void) | null;
  readonly #log: Log;
  readonly #devices: DeviceOverview;
  readonly #waiting: string[] = [];
  #ready = false;
  #stopping = false;
  /** A device was in use, and none has begun to stop since. */
  #putOff = false;
  #retrying = false;
  #complained = false;
  #withheld = false;
  #status = '';

  constructor(options: NotifierOptions) {
    const { socket, watchdogMs, tellParent, environment = {}, log, now = () => performance.now() } = options;
    this.managed = socket !== null || tellParent !== null;
    this.environment = environment;
    this.#socket = socket;
    this.#watchdogMs = watchdogMs;
    this.#tellParent = tellParent;
    this.#log = log;
    this.#devices = new DeviceOverview(now);
  }

  deviceChanged(name: string, state: DeviceState): void {
    this.#devices.changed(name, state);
    if (state === 'stopping') this.#putOff = false;
    this.#say(this.#devices.line());
  }

  /**
   * From now on there are signs of life. Before the first READY=1 systemd does not wait for them, but that may have come from our
   * predecessor in this process.
   */
  keepAlive(): void {
    if (this.#watchdogMs === null) return;
    this.signOfLife();
    setInterval(() => this.signOfLife(), this.#watchdogMs / 2).unref();
  }

  /** Every device of the configuration is live or has failed. */
  ready(): void {
    this.#ready = true;
    this.#sayReady();
    this.#tellParent?.('ready');
  }

  /** The service manager counts the service as reloading until `reload` has settled, which settles this too. */
  async whileReloading(reload: () => Promise<void>): Promise<void> {
    // Another READY=1 before the first would say that the devices are there.
    if (!this.#ready) return reload();
    // What systemd compares is CLOCK_MONOTONIC, which is what hrtime reads.
    this.#send('RELOADING=1', `MONOTONIC_USEC=${String(process.hrtime.bigint() / 1000n)}`);
    try {
      await reload();
    } finally {
      this.#sayReady();
    }
  }

  /**
   * As long as `stop` is at work the service manager gives it time, but none for looking again whether a device is still
   * in use. Settles as `stop` does.
   */
  async whileStopping(stop: () => Promise<void>): Promise<void> {
    if (!this.#stopping) this.#send('STOPPING=1');
    this.#stopping = true;
    const beat = setInterval(() => {
      if (!this.#putOff) this.#send(`EXTEND_TIMEOUT_USEC=${STOP_EXTENSION_US}`);
    }, STOP_BEAT_MS);
    try {
      await stop();
    } finally {
      clearInterval(beat);
    }
  }

  /** Why a stop is put off. */
  stopPutOff(reason: string): void {
    this.#putOff = true;
    this.#say(`waiting to stop: ${reason}`);
  }

  /** That this runs says that the control loop does. */
  signOfLife(): void {
    if (this.#watchdogMs === null) return;
    const lost = this.#devices.lost();
    if (lost.length === 0) this.#send('WATCHDOG=1');
    else if (!this.#withheld) this.#log.error({ devices: lost }, `${lost.join(', ')}: no progress; no WATCHDOG=1`);
    this.#withheld = lost.length > 0;
  }

  #sayReady(): void {
    this.#status = this.#devices.line();
    this.#send('READY=1', `STATUS=${this.#status}`);
  }

  #say(status: string): void {
    if (status === this.#status) return;
    this.#status = status;
    // While the service manager is busy, only the latest of these messages counts; it must not crowd out the others.
    if (this.#waiting.at(-1)?.startsWith('STATUS=') === true) this.#waiting.pop();
    this.#send(`STATUS=${status}`);
  }

  #send(...assignments: readonly string[]): void {
    if (this.#socket === null || this.#waiting.length >= MOST_WAITING) return;
    this.#waiting.push(assignments.join('\n'));
    if (!this.#retrying) this.#flush(this.#socket);
  }

  /** In order, as READY=1 behind RELOADING=1 means something else than before it. */
  #flush(socket: string): void {
    this.#retrying = false;
    for (let text = this.#waiting[0]; text !== undefined; text = this.#waiting[0]) {
      try {
        sendDatagram(socket, text);
      } catch (error) {
        if (error instanceof SupervisorError && error.code === 'EAGAIN') {
          this.#retrying = true;
          setTimeout(() => this.#flush(socket), RETRY_MS).unref();
          return;
        }
        // It is gone, or never was; the devices do not need it.
        if (!this.#complained) this.#log.warn({}, `notifying the service manager failed: ${reasonOf(error)}`);
        this.#complained = true;
      }
      this.#waiting.shift();
    }
  }
}

/**
 * What the environment says of who started us. The variables are taken out of it: a child that inherited them would
 * speak in our name.
 */
export function takeNotifier(log: Log): Notifier {
  const environment: Record<string, string> = {};
  for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) {
    const value = process.env[name];
    if (value !== undefined) environment[name] = value;
    Reflect.deleteProperty(process.env, name);
  }
  const { NOTIFY_SOCKET: address = '', WATCHDOG_USEC: interval = '', WATCHDOG_PID: pid = '' } = environment;
  const usable = /^[/@]./.test(address) && Buffer.byteLength(address) <= LONGEST_ADDRESS;
  if (address !== '' && !usable) log.warn({ address }, 'NOTIFY_SOCKET is not the address of a unix socket; ignored');
  const forUs = pid === '' || pid === String(process.pid);
  return new Notifier({
    socket: usable ? address : null,
    watchdogMs: forUs && /^[1-9][0-9]{0,14}$/.test(interval) ? Number(interval) / 1000 : null,
    // The channel to pm2, or to another parent. A closed one is ignored, as a closed log is.
    tellParent:
      process.send === undefined ? null : (message) => void process.send?.(message, undefined, {}, () => undefined),
    environment,
    log,
  });
}
