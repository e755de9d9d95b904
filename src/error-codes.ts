import { constants } from 'node:os';

/** Exit codes of `start`, from sysexits(3); ublk-supervisor(8), EXIT STATUS. */
export const DaemonExit = {
  ok: 0,
  usage: 64,
  unavailable: 69,
  internal: 70,
  os: 71,
  cannotCreate: 73,
  permission: 77,
  config: 78,
} as const;

interface ErrorFacts {
  /** A sentence about the failure, as ublk-supervisor(3) has it. */
  readonly meaning: string;
  /** What the control API answers; left out: 500. */
  readonly http?: number;
  /** What `start` exits with when it ends it; left out: `DaemonExit.os`. */
  readonly exit?: number;
}

const table = <Code extends string>(codes: Readonly<Record<Code, ErrorFacts>>): Readonly<Record<Code, ErrorFacts>> =>
  codes;

/** Every code of a `SupervisorError` that is no errno's name. */
export const errorCodes = table({
  ABORTED: { meaning: 'Something else was asked for before it was done.' },
  ADDON: { meaning: 'The compiled part does not fit this machine.' },
  BACKEND: { meaning: 'The backend could not be opened, or is no longer what was opened.' },
  BAD_KERNEL: { meaning: 'This kernel crashes when it is asked for a ublk device.', exit: DaemonExit.unavailable },
  BAD_REQUEST: { meaning: 'A request to the control socket is malformed.', http: 400 },
  BUSY: { meaning: 'The device is on its way to another state.', http: 409 },
  CONFIG: { meaning: 'The configuration of a device, or of all, is wrong.', http: 400, exit: DaemonExit.config },
  DEAD: { meaning: 'The kernel has the device and it was never started, or is stopped.' },
  EXISTS: { meaning: 'There is a device of that name already.', http: 409 },
  EXITED: { meaning: 'A queue process of the device is gone.' },
  FORBIDDEN: { meaning: 'The user who asks may not do that.', http: 403 },
  GIVEN_UP: { meaning: 'The limit of restarts is reached, and the device is removed.' },
  INTERNAL: { meaning: 'This is a bug in ublk-supervisor.', exit: DaemonExit.internal },
  INTERRUPTED: { meaning: 'A signal ended the command.' },
  IN_USE: { meaning: 'The device is in use; the message names its users.', http: 409 },
  LOST: { meaning: 'This kernel cannot recover the device any more.' },
  MEDIA_TYPE: { meaning: 'The body of a request to the control socket is not JSON.', http: 415 },
  METHOD: { meaning: 'The control API has no such method on that resource.', http: 405 },
  NEW_BACKEND: { meaning: 'The files of a new backend could not be written.' },
  NOT_FOUND: { meaning: 'There is no device, or resource, of that name.', http: 404 },
  NOT_LIVE: { meaning: 'The device is not live.' },
  NOT_RUNNING: { meaning: 'No supervisor runs in that runtime directory.' },
  NO_IO_URING: { meaning: 'This kernel has no io_uring, or it is disabled.', exit: DaemonExit.unavailable },
  NO_UBLK: {
    meaning: 'This kernel has no ublk driver, or it lacks a feature that is needed.',
    exit: DaemonExit.unavailable,
  },
  OS: { meaning: 'The operating system refused something.' },
  PARKED: { meaning: 'No further restart is due, and the device waits for an operator.' },
  PROTOCOL: { meaning: 'The supervisor gave an answer that the client does not understand.' },
  REFUSED: { meaning: 'What was asked for is not possible for this device as it is.', http: 409 },
  RELOAD: { meaning: 'A step of a reload failed; the others are done.' },
  RESTART: { meaning: 'Some of the devices could not be restarted.' },
  RUNNING: { meaning: 'Another supervisor uses the runtime directory.', exit: DaemonExit.cannotCreate },
  RUNTIME_DIR: { meaning: 'The runtime directory cannot be used.', exit: DaemonExit.cannotCreate },
  STOPPED: { meaning: 'The device was stopped.' },
  STOPPING: { meaning: 'The supervisor, or the device, is being stopped.' },
  STUCK: { meaning: 'A queue process survives SIGKILL in an uninterruptible sleep.' },
  TIMEOUT: { meaning: 'It took too long, and may still be under way.' },
  TOO_LARGE: { meaning: 'A request to the control socket is too large.', http: 413 },
  TOO_MANY: { meaning: 'There are too many requests to the control socket.', http: 429 },
  UNFINISHED: { meaning: 'An earlier supervisor left a recovery that was not finished.' },
  UNLOADABLE: { meaning: "The backend's module cannot be loaded." },
  USAGE: { meaning: 'The command line is wrong.', exit: DaemonExit.usage },
  WRITE_BACK: { meaning: 'What was written to the device could not all be given to its backend.' },
  ZYGOTE: { meaning: 'The zygote, or the nursery that forks zygotes, is gone or of another build.' },
});

/** The name of an errno, as the kernel or libc gave it. */
export type Errno = keyof typeof constants.errno;

export type ErrorCode = keyof typeof errorCodes | Errno;

type Consequences = Omit<ErrorFacts, 'meaning'>;

const errnos: Readonly<Partial<Record<Errno, Consequences>>> = {
  EACCES: { exit: DaemonExit.permission },
  EBUSY: { http: 409 },
  EEXIST: { http: 409 },
  EOPNOTSUPP: { http: 409 },
  EPERM: { exit: DaemonExit.permission },
};

const consequences: Readonly<Partial<Record<ErrorCode, Consequences>>> = { ...errnos, ...errorCodes };

/** The status that the control API answers with. */
export function httpStatusOf(code: ErrorCode): number {
  return consequences[code]?.http ?? 500;
}

/** What `start` exits with. */
export function daemonExitOf(code: ErrorCode): number {
  return consequences[code]?.exit ?? DaemonExit.os;
}

/** The code of an error that Node made; undefined: it is no errno's name. */
export function errorCode(text: unknown): ErrorCode | undefined {
  return typeof text === 'string' && Object.hasOwn(constants.errno, text) ? (text as Errno) : undefined;
}
