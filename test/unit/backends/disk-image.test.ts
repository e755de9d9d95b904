import { execFileSync } from 'node:child_process';
import { open, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import {
  blockSizeOf,
  blockSizeOfNew,
  containerOf,
  readerOf,
  type ChosenBlockSize,
} from '../../../backends/disk-image.js';

const MIB = 2 ** 20;
const image = join(t.testdir(), 'image');

/** @param script has the image's path as $0 */
async function made(script: string, own = 512, size = 300 * MIB): Promise<ChosenBlockSize> {
  await truncate(image, 0).catch(() => writeFile(image, ''));
  await truncate(image, size);
  execFileSync('sh', ['-ec', script, image], { stdio: ['ignore', 'ignore', 'pipe'] });
  await using file = await open(image);
  return await blockSizeOf(readerOf(file), (await file.stat()).size, own);
}

const gpt = 'printf \'label: gpt\\n, 64M\\n,\\n\' | sfdisk -q "$0"';
const put = (text: string, at: number | string): string =>
  `printf '${text}' | dd of="$0" bs=1 seek=${typeof at === 'number' ? String(at) : at} conv=notrunc status=none`;
/** An MBR whose first partition begins at block 2048. */
const mbr = 'printf \'label: dos\\n2048, 4096\\n\' | sfdisk -q "$0"';

const luks = (options: string): string =>
  `printf key > "$0.key"; cryptsetup -q luksFormat ${options} --pbkdf-force-iterations 1000 "$0" "$0.key"`;

const images: readonly [what: string, script: string, bytes: number, why: string][] = [
  ['GPT', gpt, 512, 'the GPT in it'],
  ['GPT of a disk with large blocks', put('EFI PART', 4096), 4096, 'the GPT in it'],
  ['GPT whose header was overwritten', `${gpt}; ${put('\\0', 512)}`, 512, 'the backup of a GPT in it'],
  [
    'GPT of a disk with large blocks whose header was overwritten',
    `${gpt}; ${put('\\0', 512)}; ${put('\\0', 300 * MIB - 512)}; ${put('EFI PART', 300 * MIB - 4096)}`,
    4096,
    'the backup of a GPT in it',
  ],
  ['MBR', mbr, 512, 'the MBR in it'],
  ['MBR and ext4', `${mbr}; mkfs.ext4 -qFE offset=${MIB} "$0" 100M`, 512, 'the MBR in it'],
  [
    'MBR and ext4 of a disk with large blocks',
    `${mbr}; mkfs.ext4 -qFE offset=${8 * MIB} "$0" 100M`,
    4096,
    'the MBR in it',
  ],
  ['ext4 of 1 KiB', 'mkfs.ext4 -qFb 1024 "$0"', 1024, 'the ext4 in it'],
  ['ext4 of 2 KiB', 'mkfs.ext4 -qFb 2048 "$0"', 2048, 'the ext4 in it'],
  ['ext4 of 4 KiB', 'mkfs.ext4 -qFb 4096 "$0"', 4096, 'the ext4 in it'],
  ['XFS of 512', 'mkfs.xfs -qs size=512 "$0"', 512, 'the XFS in it'],
  ['XFS of 4096', 'mkfs.xfs -qs size=4096 "$0"', 4096, 'the XFS in it'],
  ['btrfs', 'mkfs.btrfs -q "$0"', 4096, 'the btrfs in it'],
  ['FAT12', 'truncate -s 16M "$0"; mkfs.vfat -F 12 "$0"', 512, 'the FAT in it'],
  ['FAT16', 'mkfs.vfat -F 16 "$0"', 512, 'the FAT in it'],
  ['FAT32', 'mkfs.vfat -F 32 "$0"', 512, 'the FAT in it'],
  ['FAT32 of 4096', 'mkfs.vfat -F 32 -S 4096 -s 1 "$0"', 4096, 'the FAT in it'],
  ['exFAT', 'mkfs.exfat "$0"', 512, 'the exFAT in it'],
  ['swap', 'chmod 600 "$0"; mkswap "$0"', 4096, 'the swap in it'],
  ['LUKS1', luks('--type luks1'), 512, 'nothing in it asks for more'],
  ['LUKS2 of 512', luks('--type luks2 --sector-size 512 --pbkdf pbkdf2'), 512, 'the LUKS in it'],
  ['LUKS2 of 4096', luks('--type luks2 --sector-size 4096 --pbkdf pbkdf2'), 4096, 'the LUKS in it'],
  ['squashfs', 'mkdir -p "$0.d"; mksquashfs "$0.d" "$0" -noappend', 512, 'the squashfs in it'],
  [
    'ISO 9660',
    'mkdir -p "$0.d"; echo > "$0.d/a"; rm "$0"; xorriso -as mkisofs -o "$0" "$0.d"',
    2048,
    'the ISO 9660 in it',
  ],
  ['nothing', 'true', 512, 'nothing in it asks for more'],
  ['noise', 'head -c 200000 /dev/urandom | dd of="$0" conv=notrunc status=none', 512, 'nothing in it asks for more'],
  ['less than a sector', 'truncate -s 100 "$0"', 512, 'nothing in it asks for more'],
];

t.test('data that exists gets the block size that it was made for', async (t) => {
  for (const [what, script, bytes, why] of images) t.strictSame(await made(script), { bytes, why }, what);
});

t.test('what says nothing has the blocks of the disk that it is on', async (t) => {
  t.strictSame(await made('true', 4096), { bytes: 4096, why: 'the disk below has it' });
  t.strictSame(await made(put('LABELONE', 512), 4096), { bytes: 4096, why: 'the disk below has it' });
  t.strictSame(await made('mkfs.ext4 -qFb 1024 "$0"', 4096), { bytes: 1024, why: 'the ext4 in it' });
});

t.test('damaged superblocks make no other block size than there is', async (t) => {
  const wrong = `mkfs.xfs -q "$0"; ${put('\\377\\377', 102)}`;
  t.equal((await made(wrong)).bytes, 4096);
  t.equal((await made(`mkfs.xfs -q "$0"; ${put('\\1\\1', 102)}`)).bytes, 512);
  t.equal((await made(`mkfs.ext4 -qF "$0"; ${put('\\377\\377\\377\\377', 1048)}`)).bytes, 4096);
});

t.test('new data has blocks as large as a page, where its size allows it', async (t) => {
  t.strictSame(
    [MIB, MIB + 2048, MIB + 1024, MIB + 512].map((size) => blockSizeOfNew(size).bytes),
    [4096, 2048, 1024, 512],
  );
});

t.test('a container is told from a disk', async (t) => {
  const containers: readonly [string, string | Buffer, at: number][] = [
    ['a qcow2', Buffer.from('QFI\xfb', 'latin1'), 0],
    ['a VMDK', 'KDMV', 0],
    ['a VMDK', '# Disk DescriptorFile\nversion=1', 0],
    ['a VHDX', 'vhdxfile', 0],
    ['a VHD', 'conectix', 0],
    ['a VHD', 'conectix', MIB - 512],
    ['a VDI', Buffer.from([0x7f, 0x10, 0xda, 0xbe]), 64],
  ];
  for (const [name, magic, at] of containers) {
    await writeFile(image, Buffer.alloc(MIB));
    await using file = await open(image, 'r+');
    t.equal(await containerOf(readerOf(file), MIB), null);
    await file.write(Buffer.from(magic), 0, magic.length, at);
    t.equal(await containerOf(readerOf(file), MIB), name);
  }
});
