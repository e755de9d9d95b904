// run: full
// kernels: newest
// guest: --timeout 2400
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RunningSupervisor, assertNothingLeft, ok, shell } from './harness.js';

/** Disks that others made, served without a word about what is in them. */

const DIRECTORY = '/dev/shm/images';

interface Image {
  readonly name: string;
  /** Makes a file system on the device, or the file, $1. */
  readonly make: string;
  /** Bytes of a sector of the disk that it is made on; 0: of none, `make` fills the file from /tmp/tree. */
  readonly sector: 512 | 4096 | 0;
  readonly blockSize: number;
}

const images: readonly Image[] = [
  { name: 'ext4-1k', make: 'mkfs.ext4 -qb 1024 $1', sector: 512, blockSize: 1024 },
  { name: 'ext4-2k', make: 'mkfs.ext4 -qb 2048 $1', sector: 512, blockSize: 2048 },
  { name: 'ext4-4k', make: 'mkfs.ext4 -qb 4096 $1', sector: 4096, blockSize: 4096 },
  { name: 'xfs-512', make: 'mkfs.xfs -q $1', sector: 512, blockSize: 512 },
  { name: 'xfs-4096', make: 'mkfs.xfs -q $1', sector: 4096, blockSize: 4096 },
  { name: 'btrfs', make: 'mkfs.btrfs -q $1', sector: 512, blockSize: 4096 },
  { name: 'fat12', make: 'mkfs.vfat -F 12 -s 64 $1', sector: 512, blockSize: 512 },
  { name: 'fat16', make: 'mkfs.vfat -F 16 $1', sector: 512, blockSize: 512 },
  { name: 'fat32', make: 'mkfs.vfat -F 32 $1', sector: 512, blockSize: 512 },
  { name: 'fat32-4096', make: 'mkfs.vfat -F 32 -s 1 $1', sector: 4096, blockSize: 4096 },
  { name: 'exfat', make: 'mkfs.exfat $1', sector: 512, blockSize: 512 },
  { name: 'exfat-4096', make: 'mkfs.exfat $1', sector: 4096, blockSize: 4096 },
  { name: 'squashfs', make: 'mksquashfs /tmp/tree $1 -noappend -quiet', sector: 0, blockSize: 512 },
  { name: 'iso', make: 'rm $1; xorriso -as mkisofs -quiet -R -o $1 /tmp/tree', sector: 0, blockSize: 2048 },
];
/** Of fat12: it cannot have more clusters. */
const SIZES: Readonly<Record<string, string>> = { fat12: '64M' };

const fileOf = (name: string): string => `${DIRECTORY}/${name}.img`;

async function make({ name, make, sector }: Image): Promise<void> {
  const file = fileOf(name);
  const filled =
    sector === 0
      ? make.replaceAll('$1', file)
      : `loop=$(losetup --show -f --sector-size ${sector} ${file})
        ${make.replaceAll('$1', '$loop')}
        mount $loop /mnt/image; cp /tmp/tree/* /mnt/image; umount /mnt/image; losetup -d $loop`;
  await shell(`truncate -s ${SIZES[name] ?? '320M'} ${file}; ${filled}`);
}

test('images that others made', async (t) => {
  await shell(`
    modprobe -a loop xfs btrfs vfat nls_cp437 nls_ascii exfat squashfs isofs
    mkdir -p ${DIRECTORY} /mnt/image /tmp/tree
    head -c 3M /dev/urandom > /tmp/tree/noise
    (cd /tmp/tree; sha256sum noise > sums)`);
  for (const image of images) await make(image);
  // The same data on a disk of the other kind.
  const other = { 'ext4-1k': 4096, 'xfs-4096': 512 } as const;
  const behindLoop = await Promise.all(
    Object.entries(other).map(async ([name, sector]) => {
      const copy = `${DIRECTORY}/${name}-behind.img`;
      const loop = await shell(`
        cp --sparse=always ${fileOf(name)} ${copy}; losetup --show -f --sector-size ${sector} ${copy}`);
      const { blockSize } = images.find((image) => image.name === name) ?? assert.fail();
      return { name: `${name}-behind`, path: loop.trim(), blockSize };
    }),
  );
  const inArchives = await Promise.all(
    ['ext4-4k', 'fat12', 'squashfs', 'iso'].map(async (name) => {
      const path = `${DIRECTORY}/${name}.zip`;
      await ok('python3', ['-m', 'zipfile', '-c', path, fileOf(name)]);
      const { blockSize } = images.find((image) => image.name === name) ?? assert.fail();
      return { name: `${name}-zipped`, blockSize, backend: { type: 'zip', path }, chosen: ['blockSize', 'dataPath'] };
    }),
  );
  const inFiles = [...images.map(({ name, blockSize }) => ({ name, path: fileOf(name), blockSize })), ...behindLoop];
  const disks = [
    ...inFiles.map(({ name, path, blockSize }) => {
      const backend = { type: 'file', path, readOnly: name === 'iso' };
      return { name, blockSize, backend, chosen: ['blockSize', 'direct', 'dataPath'] };
    }),
    ...inArchives,
  ];
  const served = await RunningSupervisor.start(disks.map(({ name, backend }) => ({ name, backend })));
  for (const { name, blockSize, chosen } of disks) {
    await t.test(name, async () => {
      const { path, ...device } = await served.device(name);
      assert.ok(path);
      assert.equal(device.blockSize, blockSize);
      assert.deepEqual(
        device.choices.map(({ what }) => what),
        chosen,
      );
      assert.equal((await ok('blockdev', ['--getss', path])).trim(), String(blockSize));
      const readOnly = ['iso', 'squashfs'].includes(name) || name.endsWith('-zipped');
      await shell(`
        mount ${readOnly ? '-o ro' : ''} ${path} /mnt/image
        cd /mnt/image; sha256sum --quiet -c sums
        ${readOnly ? '' : 'cp noise copy; sync -f .'}
        cd /; umount /mnt/image`);
      if (readOnly) return;
      await shell(`
        mount ${path} /mnt/image; cmp /mnt/image/copy /tmp/tree/noise; umount /mnt/image`);
    });
  }
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);

  await t.test('what was written is there for whoever made them', async () => {
    for (const { name, sector } of images.filter((image) => image.sector !== 0)) {
      await shell(`
        loop=$(losetup --show -f --sector-size ${sector} ${fileOf(name)})
        mount $loop /mnt/image; cmp /mnt/image/copy /tmp/tree/noise; umount /mnt/image; losetup -d $loop`);
    }
  });
});

/** What is a part of something larger. */
interface Member {
  readonly name: string;
  readonly sector: 512 | 4096;
  /** Makes one of `$disk`. */
  readonly make: string;
  /** Makes `$opened`, a disk, of `$disk`. */
  readonly open: string;
  readonly close: string;
  readonly blockSize: number;
}

const members = ([512, 4096] as const).flatMap((sector): readonly Member[] => {
  const group = `group${sector}`;
  return [
    {
      name: `lvm-${sector}`,
      sector,
      make: `pvcreate -qqy $disk; vgcreate -qq ${group} $disk; lvcreate -qqy -n data -l 100%FREE ${group}; vgchange -qqan ${group}`,
      open: `vgchange -qqay ${group}; opened=/dev/${group}/data`,
      close: `vgchange -qqan ${group}`,
      // Neither it nor md says what it was made on.
      blockSize: 512,
    },
    {
      name: `md-${sector}`,
      sector,
      make: 'mdadm --quiet --create /dev/md9 --run --level=1 --raid-devices=2 $disk missing; mdadm --quiet --stop /dev/md9',
      open: 'mdadm --quiet --assemble --run /dev/md9 $disk; opened=/dev/md9',
      close: 'mdadm --quiet --stop /dev/md9',
      blockSize: 512,
    },
    {
      name: `luks-${sector}`,
      sector,
      make: `cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size ${sector} $disk /tmp/key`,
      open: 'cryptsetup open --key-file /tmp/key $disk plain; opened=/dev/mapper/plain',
      close: 'cryptsetup close plain',
      blockSize: sector,
    },
  ];
});

/** No udev is there, for which LVM and cryptsetup would wait. */
const WITHOUT_UDEV = 'export LVM_SYSTEM_DIR=/tmp/lvm LVM_SUPPRESS_FD_WARNINGS=1 DM_DISABLE_UDEV=1';

/** Runs `script` with the file system of a member's disk at /mnt/image. */
const inside = ({ open, close }: Member, script: string, before = ''): string => `
  ${open}
  ${before}
  mount $opened /mnt/image
  ${script}
  umount /mnt/image
  ${close}`;

const onLoop = ({ name, sector }: Member, script: string): Promise<string> =>
  shell(`${WITHOUT_UDEV}
    disk=$(losetup --show -f --sector-size ${sector} ${fileOf(name)})
    ${script}
    losetup -d $disk`);

test('images that are a part of something', async (t) => {
  await shell(`
    modprobe -a loop dm_mod dm_crypt raid1
    mkdir -p ${DIRECTORY} /mnt/image /tmp/lvm
    echo 'activation { udev_sync = 0 udev_rules = 0 }' > /tmp/lvm/lvm.conf
    head -c 3M /dev/urandom > /tmp/noise; head -c 64 /dev/urandom > /tmp/key`);
  for (const member of members) {
    await shell(`truncate -s 100M ${fileOf(member.name)}`);
    const mkfs = `mkfs.ext4 -qb ${member.sector === 512 ? '1024' : '4096'} $opened`;
    await onLoop(member, member.make + inside(member, 'cp /tmp/noise /mnt/image/noise', mkfs));
  }
  const served = await RunningSupervisor.start(
    members.map(({ name }) => ({ name, backend: { type: 'file', path: fileOf(name) } })),
  );
  for (const member of members) {
    await t.test(member.name, async () => {
      const { path, blockSize } = await served.device(member.name);
      assert.equal(blockSize, member.blockSize);
      const script = 'cd /mnt/image; cmp noise /tmp/noise; cp noise copy; sync -f .; cd /';
      await shell(`${WITHOUT_UDEV}; disk=${path ?? ''}; ${inside(member, script)}`);
    });
  }
  assert.equal(await served.terminate(), 0);
  await assertNothingLeft(served.runtimeDir);

  await t.test('what was written is there for whoever made them', async () => {
    for (const member of members) await onLoop(member, inside(member, 'cmp /mnt/image/copy /tmp/noise'));
  });
});
