// kernels: newest
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, open, stat, type FileHandle } from 'node:fs/promises';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, isLinux, ok, shell, traces, waitFor } from './harness.js';

/** Whoever uses a device, in whatever way the kernel has for that, is seen and named, and nothing is touched before. */

const MIB = 2 ** 20;
const SIZE = 256 * MIB;
const SMALLER = 128 * MIB;

interface Place {
  readonly path: string;
  /** `ublkb0` */
  readonly name: string;
}

interface User {
  /** In the message that refuses. */
  readonly named: (place: Place) => RegExp;
  readonly begin: (place: Place) => Promise<unknown>;
  readonly end: (place: Place) => Promise<unknown>;
}

const files = new Map<string, FileHandle>();
const keepOpen = async (path: string): Promise<void> => {
  files.set(path, await open(path, 'r'));
};
const closeAgain = async (path: string): Promise<void> => {
  await files.get(path)?.close();
};

const sectors = (bytes: number): string => String(bytes / 512);
/** Queue processes fetch without the right to a scan, so no kernel looks for partitions by itself. Its end is cut off below. */
const addPartition = ({ path }: Place): Promise<string> =>
  ok('addpart', [path, '1', sectors(8 * MIB), sectors(SIZE - 8 * MIB)]);
const removePartition = ({ path }: Place): Promise<string> => ok('delpart', [path, '1']);
const mountAt = async (path: string, point: string): Promise<void> => {
  await mkdir(point, { recursive: true });
  await ok('mount', [path, point]);
};
const here = new RegExp(`\\(pid ${process.pid}\\)`).source;

let elsewhere: ReturnType<typeof spawn> | undefined;
let btrfsFirst = '';

const users: Readonly<Record<string, User>> = {
  journal: {
    named: () => /in use by the journal of another device's file system \(EBUSY\)/,
    begin: ({ path }) => ok('mke2fs', ['-q', '-O', 'journal_dev', '-b', '4096', path]),
    end: () => Promise.resolve(),
  },
  mounted: {
    named: () => /in use by a mount at \/mnt\/a blank \(EBUSY\)/,
    begin: async ({ path }) => {
      const journal = paths.get('journal')?.path ?? assert.fail('no journal');
      await ok('mkfs.ext4', ['-q', '-b', '4096', '-J', `device=${journal}`, path]);
      await mountAt(path, '/mnt/a blank');
    },
    end: () => ok('umount', ['/mnt/a blank']),
  },
  opened: {
    named: () => new RegExp(`in use by node ${here} \\(EBUSY\\)`),
    begin: ({ path }) => keepOpen(path),
    end: ({ path }) => closeAgain(path),
  },
  'other-node': {
    named: () => new RegExp(`in use by node ${here} \\(EBUSY\\)`),
    begin: async ({ path, name }) => {
      const { rdev } = await stat(path);
      await ok('mknod', [`/dev/other-${name}`, 'b', String((rdev >> 8) & 0xfff), String(rdev & 0xff)]);
      await keepOpen(`/dev/other-${name}`);
    },
    end: ({ name }) => closeAgain(`/dev/other-${name}`),
  },
  'partition-opened': {
    named: ({ name }) => new RegExp(`in use by node ${here} with /dev/${name}p1 open \\(EBUSY\\)`),
    begin: async (place) => {
      await addPartition(place);
      await keepOpen(`${place.path}p1`);
    },
    end: async (place) => {
      await closeAgain(`${place.path}p1`);
      await removePartition(place);
    },
  },
  'partition-mounted': {
    named: ({ name }) => new RegExp(`in use by a mount of /dev/${name}p1 at /mnt/partition \\(EBUSY\\)`),
    begin: async (place) => {
      await addPartition(place);
      await ok('mkfs.ext4', ['-q', `${place.path}p1`]);
      await mountAt(`${place.path}p1`, '/mnt/partition');
    },
    end: async (place) => {
      await ok('umount', ['/mnt/partition']);
      await removePartition(place);
    },
  },
  // As LVM does it, of which the kernel sees no more.
  volume: {
    named: ({ name }) =>
      new RegExp(`by /dev/dm-[0-9]+ \\(vg-lv\\) on /dev/${name}p1, a mount of /dev/dm-[0-9]+ at /mnt/lv \\(EBUSY\\)`),
    begin: async (place) => {
      await addPartition(place);
      const table = `0 ${sectors(64 * MIB)} linear ${place.path}p1 ${sectors(128 * MIB)}`;
      await ok('dmsetup', ['create', 'vg-lv', '--noudevsync', '--table', table]);
      await ok('dmsetup', ['mknodes']);
      await ok('mkfs.ext4', ['-q', '/dev/mapper/vg-lv']);
      await mountAt('/dev/mapper/vg-lv', '/mnt/lv');
    },
    end: async (place) => {
      await ok('umount', ['/mnt/lv']);
      await ok('dmsetup', ['remove', '--noudevsync', 'vg-lv']);
      await removePartition(place);
    },
  },
  crypt: {
    named: ({ name }) => new RegExp(`in use by /dev/dm-[0-9]+ \\(secret\\) on /dev/${name} \\(EBUSY\\)`),
    begin: ({ path }) => {
      const table = `0 ${sectors(64 * MIB)} crypt aes-xts-plain64 ${'0123456789abcdef'.repeat(4)} 0 ${path} 0`;
      return ok('dmsetup', ['create', 'secret', '--noudevsync', '--table', table]);
    },
    end: () => ok('dmsetup', ['remove', '--noudevsync', 'secret']),
  },
  loop: {
    named: ({ name }) => new RegExp(`in use by /dev/loop[0-9]+ on /dev/${name} \\(EBUSY\\)`),
    begin: ({ path }) => shell(`modprobe loop; losetup -f ${path}`),
    end: ({ path }) => shell(`losetup -d $(losetup -n -O NAME -j ${path})`),
  },
  swap: {
    named: () => /in use by swap \(EBUSY\)/,
    begin: ({ path }) => shell(`mkswap -q ${path}; swapon ${path}`),
    end: ({ path }) => ok('swapoff', [path]),
  },
  'swap-partition': {
    named: ({ name }) => new RegExp(`in use by swap on /dev/${name}p1 \\(EBUSY\\)`),
    begin: async (place) => {
      await addPartition(place);
      await shell(`mkswap -q ${place.path}p1; swapon ${place.path}p1`);
    },
    end: async (place) => {
      await ok('swapoff', [`${place.path}p1`]);
      await removePartition(place);
    },
  },
  'btrfs-1': {
    named: ({ name }) => new RegExp(`a btrfs mount of (/dev/ublkb[0-9]+ and )?/dev/${name}( and .*)? at /mnt/btrfs`),
    begin: ({ path }) => {
      btrfsFirst = path;
      return Promise.resolve();
    },
    end: () => ok('umount', ['/mnt/btrfs']),
  },
  'btrfs-2': {
    named: ({ name }) => new RegExp(`a btrfs mount of (/dev/ublkb[0-9]+ and )?/dev/${name}( and .*)? at /mnt/btrfs`),
    begin: async ({ path }) => {
      await shell(`modprobe btrfs; mkfs.btrfs -q -d single -m single ${btrfsFirst} ${path}`);
      await mkdir('/mnt/btrfs');
      await ok('mount', ['-o', `device=${path}`, btrfsFirst, '/mnt/btrfs']);
    },
    end: () => Promise.resolve(),
  },
  elsewhere: {
    named: () => /in use by a mount at \/mnt\/elsewhere in the mount namespace of sleep \(pid [0-9]+\) \(EBUSY\)/,
    begin: async ({ path }) => {
      await ok('mkfs.ext4', ['-q', path]);
      await mkdir('/mnt/elsewhere');
      const script = `mount ${path} /mnt/elsewhere && : > /run/is-mounted && exec sleep 1000`;
      elsewhere = spawn('unshare', ['-m', 'sh', '-c', script], { stdio: 'inherit' });
      await waitFor('the mount', () => existsSync('/run/is-mounted'));
    },
    end: async () => {
      const ended = new Promise((resolve) => elsewhere?.once('exit', resolve));
      elsewhere?.kill('SIGKILL');
      await ended;
    },
  },
};

const paths = new Map<string, Place>();
const store = (name: string): string => `/run/stores/${name}.img`;
const device = (name: string, id: number): object => ({
  name,
  id,
  blockSize: 512,
  backend: { type: 'file', path: store(name), size: '256MiB' },
});

interface Refusal {
  readonly error: { readonly code: string; readonly message: string };
}

test('whoever uses a device is seen', async (t) => {
  await mkdir('/run/stores');
  const names = [...Object.keys(users), 'unused'];
  const served = await RunningSupervisor.start(names.map(device));
  const inUse = Object.entries(users);

  /** Sizes of stores and who serves them. */
  const everything = async (): Promise<unknown> => {
    const { devices } = await served.status();
    return Promise.all(
      devices.map(async ({ name, state, generation, size, queues }) => {
        return [name, state, generation, size, queues.map(({ pid }) => pid), (await stat(store(name))).size];
      }),
    );
  };
  const refusalOf = async (method: string, path: string, body?: unknown): Promise<string> => {
    const { status, body: answer } = await served.api(method, path, body);
    assert.equal(status, 409, `${method} ${path}: ${JSON.stringify(answer)}`);
    return (answer as Refusal).error.message;
  };

  for (const { name, id } of (await served.status()).devices) {
    paths.set(name, { path: `/dev/ublkb${String(id)}`, name: `ublkb${String(id)}` });
  }
  const placeOf = (name: string): Place => paths.get(name) ?? assert.fail(`no device ${name}`);
  for (const [name, { begin }] of inUse) await begin(placeOf(name));
  const before = await everything();

  const eachRefused = async (method: string, query: string, action = '', body?: unknown): Promise<void> => {
    const said = await Promise.all(
      inUse.map(([name]) => refusalOf(method, `/v1/devices/${name}${action}${query}`, body)),
    );
    for (const [index, [name, { named }]] of inUse.entries()) assert.match(said[index] ?? '', named(placeOf(name)));
    assert.deepEqual(await everything(), before);
  };
  await t.test('E4 stop is refused', () => eachRefused('DELETE', ''));
  await t.test('E4 del is refused', () => eachRefused('DELETE', '?data=remove'));
  await t.test('E2 resize to less is refused', { skip: isLinux(6, 16) ? false : 'needs 6.16' }, () =>
    eachRefused('POST', '', '/resize', { size: SMALLER }),
  );

  const nothingChanged = async (message: string): Promise<void> => {
    for (const [name, { named }] of inUse) assert.match(message, named(placeOf(name)), name);
    assert.doesNotMatch(message, new RegExp(`/dev/${placeOf('unused').name} `));
    assert.deepEqual(await everything(), before);
  };
  await t.test('E4 a stop of all is refused, with none stopped', async () => {
    await nothingChanged(await refusalOf('POST', '/v1/stop'));
  });
  await t.test('C2 a reload that removes them is refused, with none removed', async () => {
    await served.configure([]);
    const message = await refusalOf('POST', '/v1/reload');
    assert.match(message, /nothing was changed$/);
    await nothingChanged(message);
  });

  await t.test('E2, E4 nobody is left who has them once the users are gone', async () => {
    for (const [name, { end }] of inUse.reverse()) await end(placeOf(name));
    if (isLinux(6, 16)) {
      const { status, body } = await served.api('POST', '/v1/devices/volume/resize', { size: SMALLER });
      assert.equal(status, 200, JSON.stringify(body));
      assert.equal((await stat(store('volume'))).size, SMALLER);
    }
    // The namespace, and with it the mount, goes a moment after its last process.
    await waitFor('the stop', async () => (await served.api('POST', '/v1/stop')).status === 200);
    assert.equal(await served.exit, 0);
    await waitFor('the devices leaving', () => names.every((_, id) => traces(id).length === 0), 5_000);
  });
  await assertNothingLeft(served.runtimeDir);
});
