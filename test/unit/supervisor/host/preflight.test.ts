import t from 'tap';
import { deviceLimitCheck, sharedMemoryCheck, swapCheck } from '../../../../src/cli/doctor-checks.js';
import { SupervisorError } from '../../../../src/errors.js';
import { deviceShortage } from '../../../../src/supervisor/host/device-limit.js';
import { daemonExitCode } from '../../../../src/cli/exit-codes.js';
import type { Host } from '../../../../src/supervisor/host/host.js';
import {
  assertReady,
  capabilityShortage,
  preflightChecks,
  runChecks,
} from '../../../../src/supervisor/host/preflight.js';
import { featuresWith, hasFeature, ublkFeatureTable } from '../../../../src/supervisor/host/ublk-features.js';

type Files = Readonly<Record<string, string>>;

const control = '/dev/ublk-control';
const withCapabilities = (effective: string): Files => ({
  '/proc/self/status': `Name:\tnode\nCapEff:\t${effective}\n`,
});
const withDev = (type: string): Files => ({
  '/proc/self/mountinfo': `21 1 0:5 / /dev rw - devtmpfs udev rw\n30 21 0:40 / /dev rw,nosuid - ${type} x rw\n31 30 0:41 / /dev/shm rw - tmpfs x rw\n`,
});
const rootFiles: Files = {
  ...withCapabilities('000001ffffffffff'),
  ...withDev('devtmpfs'),
  '/dev': '',
  '/proc/self/uid_map': '         0          0 4294967295\n',
  '/proc/sys/kernel/io_uring_disabled': '0\n',
  [control]: '',
};

interface Machine {
  readonly release?: string;
  readonly files?: Files;
  readonly without?: readonly string[];
  readonly mode?: number;
  readonly writable?: boolean;
  readonly features?: bigint;
  readonly ioUringErrno?: number;
  readonly packageRoot?: string;
  readonly listing?: readonly string[];
  readonly capacity?: number | undefined;
}

/** A machine that can serve ublk, but for what is said. */
function host(machine: Machine = {}): Host {
  const {
    release = '6.12.57+deb13-amd64',
    mode = 0o20600,
    writable = true,
    features = 0xffn,
    ioUringErrno = 0,
    packageRoot = '/usr/lib/node_modules/ublk-supervisor/',
    listing = [],
    capacity,
  } = machine;
  const files = new Map(Object.entries({ ...rootFiles, ...machine.files }));
  for (const path of machine.without ?? []) files.delete(path);
  return {
    release,
    packageRoot,
    readText: (path) => files.get(path),
    stat: (path) => (files.has(path) ? { mode, isDirectory: () => false } : undefined),
    writable: (path) => writable && files.has(path),
    list: () => listing,
    capacity: () => capacity,
    ublkFeatures: () => features,
    ioUringErrno: () => ioUringErrno,
  };
}

function refusal(machine: Machine): { readonly exit: number; readonly message: string } {
  try {
    assertReady(() => undefined, host(machine));
  } catch (error) {
    if (error instanceof SupervisorError) return { exit: daemonExitCode(error), message: error.message };
    throw error;
  }
  return { exit: 0, message: '' };
}

t.test('a machine that has all of it passes every check', async (t) => {
  t.strictSame(
    runChecks(preflightChecks, host()).map(({ status }) => status),
    preflightChecks.map(() => 'ok'),
  );
  t.strictSame(refusal({}), { exit: 0, message: '' });
});

t.test('kernels that crash in ADD_DEV are refused, their neighbours are not', async (t) => {
  for (const release of ['6.18.4', '6.18.5-arch1-1', '6.17.0-1015-azure', '6.17.0-1018-azure', '6.17.0-1017-aws']) {
    t.match(refusal({ release }), { exit: 69, message: /^kernel: .*; boot another kernel/ }, release);
  }
  for (const release of [
    '6.18.44',
    '6.18.50',
    '6.18.3',
    '6.18.6',
    '6.17.0-1016-azure',
    '6.17.0-1015-aws',
    '6.17.0-101-generic',
  ]) {
    t.equal(refusal({ release }).exit, 0, release);
  }
});

t.test('one line and the documented exit code for whatever is missing', async (t) => {
  const release = '6.12.0';
  const dep = `/lib/modules/${release}/modules.dep`;
  const without = [control];
  t.match(refusal({ release, without, files: { [dep]: 'kernel/drivers/block/ublk_drv.ko.xz:\n' } }), {
    exit: 69,
    message: /not loaded; run: modprobe ublk_drv$/,
  });
  t.match(refusal({ release, without, files: { [dep]: 'kernel/drivers/block/loop.ko:\n' } }), {
    exit: 69,
    message: /CONFIG_BLK_DEV_UBLK/,
  });
  t.match(refusal({ release, without }), { exit: 69, message: /modprobe ublk_drv/ });
  t.match(refusal({ without, files: { '/sys/class/misc/ublk-control': '' } }), {
    exit: 69,
    message: /ublk-control is missing/,
  });
  t.match(refusal({ writable: false }), { exit: 77, message: /permission denied \(EACCES\); run as root/ });
  t.match(refusal({ files: withCapabilities('0000000000000000') }), { exit: 77, message: /CAP_SYS_ADMIN/ });
  t.match(refusal({ files: withCapabilities('000001fffeffffff') }), {
    exit: 77,
    message: /without CAP_SYS_RESOURCE; run as root/,
  });
  t.match(refusal({ files: { ...withDev('tmpfs'), ...withCapabilities('000001fff7ffffff') } }), {
    exit: 77,
    message: /^\/dev: tmpfs of its own, .*: without CAP_MKNOD; bind the machine's \/dev .*CAP_MKNOD$/,
  });
  t.match(refusal({ files: withDev('tmpfs'), without: ['/dev'] }), { exit: 77, message: /: it is not writable; bind/ });
  t.match(refusal({ packageRoot: '/opt/my programs/ublk-supervisor/' }), { message: /no path has a blank/ });
  t.match(refusal({ files: { '/proc/self/uid_map': '0 1000 1\n' } }), { exit: 77, message: /user namespace/ });
  t.match(refusal({ files: { '/proc/sys/kernel/io_uring_disabled': '2\n' } }), {
    exit: 69,
    message: /sysctl kernel.io_uring_disabled=1/,
  });
  t.match(refusal({ ioUringErrno: 38 }), { exit: 69, message: /\(ENOSYS\)/ });
  t.match(refusal({ ioUringErrno: 1 }), { exit: 77, message: /\(EPERM\).*seccomp/ });
  t.match(refusal({ ioUringErrno: 12 }), { exit: 71, message: /\(ENOMEM\).*LimitMEMLOCK/ });
  t.match(refusal({ features: 0b10111n }), { exit: 69, message: /lacks USER_RECOVERY, CMD_IOCTL_ENCODE; boot/ });
});

t.test('what a kernel offers is listed, whatever it is', async (t) => {
  const bits = [3n, 20n, 21n, 63n];
  const offered = bits.reduce((sum, bit) => sum | (1n << bit), 0n);
  const listed = featuresWith(offered);
  t.strictSame(
    listed.filter((feature) => hasFeature(offered, feature)).map(({ name }) => name),
    ['USER_RECOVERY', 'IO_DESC_SIZE', 'bit 21', 'bit 63'],
  );
  t.strictSame(
    listed.length,
    ublkFeatureTable.length + 2,
    'what only a newer kernel has is listed where it is offered',
  );
  t.ok(ublkFeatureTable.every(({ bit }, index) => bit === index));
});

t.test('a control device that everybody may write to is a warning', async (t) => {
  const warnings: string[] = [];
  assertReady((warning) => warnings.push(warning), host({ mode: 0o20666 }));
  t.strictSame(warnings, [
    '/dev/ublk-control: writable by everybody, who can then reach ublk kernel code; chmod 0600 /dev/ublk-control',
  ]);
});

t.test('what a device can do without is a warning, or nothing', async (t) => {
  const warningsOf = (machine: Machine): string[] => {
    const warnings: string[] = [];
    assertReady((warning) => warnings.push(warning), host(machine));
    return warnings;
  };
  t.strictSame(warningsOf({ files: withDev('tmpfs') }), [], "nodes are made in a /dev that is nobody else's");
  t.strictSame(warningsOf({ files: { '/proc/self/mountinfo': '' } }), [], 'nor where it is a directory');
  t.strictSame(warningsOf({ files: withCapabilities('000001fff7ffffff') }), [], 'none are made in a devtmpfs');
  t.strictSame(warningsOf({ files: withCapabilities('000001ffffffbfff') }), [], 'CAP_IPC_LOCK: the limit is lifted');
  t.match(warningsOf({ files: withCapabilities('000001fffff7ffff') }), [
    /^who has a device open: without CAP_SYS_PTRACE .*; run/,
  ]);
});

t.test('what a user of a device takes', async (t) => {
  const root = { name: 'root', user: { uid: 0, gid: 0 } };
  const none = { name: 'none', user: undefined };
  const guest = { name: 'guest', user: { uid: 1000, gid: 1000 } };
  const lacking = host({ files: withCapabilities('000001ffffffff5f') });
  t.equal(capabilityShortage([root, none, guest], host()), null);
  t.equal(capabilityShortage([root, none], lacking), null);
  t.match(
    capabilityShortage([none, guest], lacking),
    /^device guest has a user, which takes CAP_KILL, CAP_SETUID; run/,
  );
  t.match(capabilityShortage([guest, guest], lacking), /^2 devices have a user, which takes /);
});

t.test('the number of devices that the kernel takes', async (t) => {
  const files = { '/sys/module/ublk_drv/parameters/ublks_max': '64\n' };
  const listing = Array.from({ length: 64 }, (_, id) => `ublkc${id}`);
  const check = (machine: Machine) => deviceLimitCheck.probe(host({ files, ...machine }));
  t.match(check({ listing: listing.slice(1), release: '6.12.30' }), { status: 'ok', detail: /^63 of the 64 / });
  for (const release of ['6.12.30', '6.13.12', '6.14.8'])
    t.match(check({ listing, release }), {
      status: 'warn',
      detail: /^64 of the 64 /,
      advice: /echo 128 > .*ublks_max$/,
    });
  for (const release of ['6.12.31-cloud-amd64', '6.12.117+deb13-cloud-amd64', '6.14.9', '6.15.0', '7.2.12'])
    t.match(check({ listing, release }), { status: 'ok', detail: /not limited/ });
  t.equal(deviceShortage(64, 64), null);
  t.equal(deviceShortage(1000, null), null);
  t.match(deviceShortage(65, 64), /^65 devices are configured, and this kernel takes 64; run: echo 65 > .*ublks_max$/);
});

t.test('a /dev/shm that is as small as that of a container', (t) => {
  const check = (capacity?: number) => sharedMemoryCheck.probe(host({ capacity }));
  t.match(check(64 * 2 ** 20), { status: 'warn', detail: /^64M /, advice: /remount,size=.*--shm-size/ });
  t.match(check(), { status: 'warn', detail: /missing/, advice: /mount -t tmpfs/ });
  t.match(check(2 ** 30), { status: 'ok', detail: /^1G / });
  t.match(check(Infinity), { status: 'ok' });
  t.end();
});

t.test('swap is warned of on devices that may need the memory which is to be swapped out', (t) => {
  const swaps = `Filename\tType\tSize\tUsed\tPriority
/dev/ublkb0  partition  262140  0  -2
/dev/ublkb1p2  partition  262140  0  -3
/dev/ublkb11  partition  262140  0  -4\n`;
  const devices = ['file', 'ram', 'null'].map((backend, id) => ({
    name: `d${id}`,
    path: `/dev/ublkb${id}`,
    backend,
  }));
  const machine = host({ files: { '/proc/swaps': swaps } });
  t.match(runChecks([swapCheck(devices)], machine), [{ status: 'warn', detail: 'on device d1 (ram)' }]);
  t.match(runChecks([swapCheck(devices.slice(0, 1))], machine), [
    { status: 'ok', detail: "on 1 of this supervisor's devices" },
  ]);
  t.match(runChecks([swapCheck(devices)], host()), [{ status: 'ok' }]);
  t.end();
});
