import { getSystemErrorMap } from 'node:util';
import type { DeviceConfig } from '../../config/types.js';
import type { ErrorCode } from '../../error-codes.js';
import { errnoName, SupervisorError, messageOf } from '../../errors.js';
import { typeOfDev } from '../nodes/device-nodes.js';
import { thisHost, type Host } from './host.js';
import { hasFeature, ublkFeatureTable } from './ublk-features.js';

export type CheckStatus = 'ok' | 'warn' | 'fail';

export interface CheckResult {
  readonly status: CheckStatus;
  readonly detail: string;
  /** What to do about it. */
  readonly advice?: string;
  /** The code of the `SupervisorError` that `start` ends with; decides its exit code. */
  readonly code?: ErrorCode;
}

export interface Check {
  readonly id: string;
  readonly subject: string;
  /** null: an earlier check's failure makes this one meaningless. */
  probe(host: Host): CheckResult | null;
}

const CONTROL_DEVICE = '/dev/ublk-control';
/** What device commands, queue processes and their limits take, by number; a container may have left some out. */
const REQUIRED = { CAP_SETPCAP: 8n, CAP_SYS_ADMIN: 21n, CAP_SYS_RESOURCE: 24n };
const CAP_SYS_PTRACE = 19n;
/** To become the user of a device, and to end and to watch its processes. */
const FOR_USERS = { CAP_KILL: 5n, CAP_SETGID: 6n, CAP_SETUID: 7n, CAP_SYS_PTRACE };
const CAP_MKNOD = 27n;

/** Releases whose ADD_DEV oopses and never returns. */
const KNOWN_BAD: readonly RegExp[] = [/^6\.18\.[45](?![0-9])/, /^6\.17\.0-101[58]-azure$/, /^6\.17\.0-1017-aws$/];

const ok = (detail: string): CheckResult => ({ status: 'ok', detail });
const warn = (detail: string, advice: string): CheckResult => ({ status: 'warn', detail, advice });
const fail = (code: ErrorCode, detail: string, advice: string): CheckResult => ({
  status: 'fail',
  code,
  detail,
  advice,
});

/** What must be right before a device can be served, most telling failure first. */
export const preflightChecks: readonly Check[] = [
  {
    id: 'kernel',
    subject: 'kernel',
    probe: ({ release }) =>
      KNOWN_BAD.some((pattern) => pattern.test(release))
        ? fail('BAD_KERNEL', `Linux ${release} crashes when a ublk device is added`, 'boot another kernel release')
        : ok(`Linux ${release}`),
  },
  { id: 'ublk', subject: 'ublk driver', probe: probeDriver },
  {
    id: 'control-device',
    subject: CONTROL_DEVICE,
    probe: (host) => {
      const found = host.stat(CONTROL_DEVICE);
      if (!found) return null;
      if (!host.writable(CONTROL_DEVICE)) return fail('EACCES', 'permission denied (EACCES)', 'run as root');
      if ((found.mode & 0o002) !== 0) {
        return warn('writable by everybody, who can then reach ublk kernel code', `chmod 0600 ${CONTROL_DEVICE}`);
      }
      return ok('present and writable');
    },
  },
  {
    id: 'privilege',
    subject: 'privilege',
    probe: (host) => {
      const missing = missingOf(REQUIRED, host);
      if (missing !== '') {
        return fail('EPERM', `without ${missing}`, 'run as root, in a container with these capabilities');
      }
      if (!/^\s*0\s+0\s+4294967295\s*$/.test(host.readText('/proc/self/uid_map') ?? '')) {
        return fail('EPERM', 'this is a user namespace, where ublk refuses everybody', 'run outside of it');
      }
      return ok(Object.keys(REQUIRED).join(', '));
    },
  },
  {
    id: 'openers',
    subject: 'who has a device open',
    probe: (host) => {
      if (missingOf({ CAP_SYS_PTRACE }, host) === '') return ok('seen of all users');
      const detail = 'without CAP_SYS_PTRACE programs of other users are not seen, which a stop then may cut off';
      return warn(detail, 'run in a container or a service that has it');
    },
  },
  { id: 'dev', subject: '/dev', probe: probeDev },
  { id: 'place', subject: 'installation', probe: probePlace },
  { id: 'io-uring', subject: 'io_uring', probe: probeIoUring },
  { id: 'features', subject: 'ublk features', probe: probeFeatures },
];

/** The results of the checks that apply, in order. */
export function runChecks(
  checks: readonly Check[],
  host: Host = thisHost,
): readonly (CheckResult & Pick<Check, 'id' | 'subject'>)[] {
  return checks.flatMap((check) => {
    const result = check.probe(host);
    return result ? [{ id: check.id, subject: check.subject, ...result }] : [];
  });
}

/** Rejects with the first failure, in one line; warnings go to `onWarning`. */
export function assertReady(onWarning: (message: string) => void, host: Host = thisHost): void {
  for (const { subject, status, detail, advice, code } of runChecks(preflightChecks, host)) {
    const message = `${subject}: ${detail}${advice === undefined ? '' : `; ${advice}`}`;
    if (status === 'fail') throw new SupervisorError(message, { code: code ?? 'OS' });
    if (status === 'warn') onWarning(message);
  }
}

function probeDriver(host: Host): CheckResult {
  if (host.stat(CONTROL_DEVICE)) return ok('loaded');
  if (host.stat('/sys/class/misc/ublk-control')) {
    return fail(
      'NO_UBLK',
      `loaded, but ${CONTROL_DEVICE} is missing`,
      'in a container pass the device in; else see udev',
    );
  }
  const modules = `/lib/modules/${host.release}`;
  const index = host.readText(`${modules}/modules.dep`);
  if (index === undefined) {
    return fail(
      'NO_UBLK',
      `not loaded, and ${modules} cannot be read`,
      'run: modprobe ublk_drv (outside of a container)',
    );
  }
  return index.includes('/ublk_drv.ko')
    ? fail('NO_UBLK', 'the module is not loaded', 'run: modprobe ublk_drv')
    : fail('NO_UBLK', `Linux ${host.release} has none`, 'boot a kernel 6.4 or later with CONFIG_BLK_DEV_UBLK');
}

/** Which of these capabilities this process lacks; an empty text: none. */
function missingOf(capabilities: Readonly<Record<string, bigint>>, host: Host): string {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(host.readText('/proc/self/status') ?? '')?.[1];
  const given = BigInt(`0x${effective ?? '0'}`);
  const missing = Object.entries(capabilities).filter(([, bit]) => ((given >> bit) & 1n) === 0n);
  return missing.map(([name]) => name).join(', ');
}

/** What the supervisor lacks for the devices that have a `user`, in one line; null: nothing. */
export function capabilityShortage(
  devices: readonly Pick<DeviceConfig, 'name' | 'user'>[],
  host: Host = thisHost,
): string | null {
  const [first, ...others] = devices.filter(({ user }) => user !== undefined && user.uid !== 0);
  const missing = missingOf(FOR_USERS, host);
  if (first === undefined || missing === '') return null;
  const which = others.length === 0 ? `device ${first.name} has` : `${others.length + 1} devices have`;
  return `${which} a user, which takes ${missing}; run in a container or a service that has it`;
}

/** If /dev is not the kernel's, we make the nodes of new devices. */
function probeDev(host: Host): CheckResult {
  const type = typeOfDev(host.readText('/proc/self/mountinfo') ?? '') ?? 'a directory';
  if (type === 'devtmpfs') return ok(type);
  const lacking = missingOf({ CAP_MKNOD }, host);
  if (lacking === '' && host.writable('/dev')) return ok(`${type} of its own, in which the nodes of devices are made`);
  const why = lacking === '' ? 'it is not writable' : `without ${lacking}`;
  return fail(
    'EPERM',
    `${type} of its own, where the nodes of new devices do not appear and cannot be made: ${why}`,
    "bind the machine's /dev into the container (docker run -v /dev:/dev), or give it CAP_MKNOD",
  );
}

/** ld.so(8) takes what LD_PRELOAD names apart at blanks and colons, and looks for its own variables. */
function probePlace({ packageRoot }: Host): CheckResult {
  if (!/[\s:$]/.test(packageRoot)) return ok(packageRoot);
  return fail(
    'OS',
    `nothing can be preloaded from ${packageRoot}`,
    'install it where no path has a blank, a colon or a $',
  );
}

function probeIoUring(host: Host): CheckResult {
  const sysctl = host.readText('/proc/sys/kernel/io_uring_disabled')?.trim() ?? '0';
  if (sysctl === '2') {
    return fail('NO_IO_URING', 'disabled for everybody', 'run: sysctl kernel.io_uring_disabled=1');
  }
  let errno: number;
  try {
    errno = host.ioUringErrno();
  } catch (error) {
    return { status: 'fail', code: 'ADDON', detail: messageOf(error) };
  }
  if (errno === 0) return ok(sysctl === '1' ? 'works; the kernel allows it to privileged processes only' : 'works');
  const name = errnoName(errno);
  const detail = `io_uring_setup failed: ${getSystemErrorMap().get(-errno)?.[1] ?? 'unknown error'} (${name})`;
  if (name === 'ENOSYS') return fail('NO_IO_URING', detail, 'boot a kernel with CONFIG_IO_URING');
  if (name === 'ENOMEM') return fail('ENOMEM', detail, 'raise the limit of locked memory (LimitMEMLOCK=infinity)');
  return fail(name, detail, 'allow it in the container runtime (seccomp) or the security module');
}

function probeFeatures(host: Host): CheckResult | null {
  if (!host.writable(CONTROL_DEVICE)) return null;
  let features: bigint;
  try {
    features = host.ublkFeatures();
  } catch (error) {
    const code = error instanceof SupervisorError ? error.code : 'OS';
    return fail(code, firstLine(error), 'boot a kernel 6.5 or later if this one does not know GET_FEATURES');
  }
  const missing = ublkFeatureTable.filter((feature) => feature.required && !hasFeature(features, feature));
  if (missing.length > 0) {
    const names = missing.map(({ name }) => name).join(', ');
    return fail('NO_UBLK', `the kernel's ublk lacks ${names}`, 'boot a kernel 6.5 or later');
  }
  const offered = ublkFeatureTable.filter((feature) => hasFeature(features, feature));
  return ok(`${offered.length} of ${ublkFeatureTable.length} known; see: ublk-supervisor features`);
}

function firstLine(error: unknown): string {
  return messageOf(error).split('\n', 1).join();
}
