import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, readFile, rename, stat, symlink, truncate, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { openStore, type StoreOptions } from '../../../../backends/file/store.js';
import type { LeftBackend } from '../../../../backends/interface.js';
import { parkFiles, parkedFiles } from '../../../../src/native/addon/files.js';
import { facts } from '../../supervisor/device/harness.js';

const MIB = 2 ** 20;
const directory = t.testdir();
const at = (name: string): string => join(directory, name);

const usual = { direct: 'auto', readOnly: false, preallocate: false, sync: false, size: undefined } as const;

const open = (path: string, options: Partial<StoreOptions> = {}) => openStore({ ...usual, path, ...options }, 4096);

t.test('a file is created sparse or with its space, and opened again as it is', async (t) => {
  for (const preallocate of [false, true]) {
    const path = at(`created-${String(preallocate)}`);
    const created = await open(path, { size: MIB, preallocate });
    t.match(created, { size: MIB, rotational: false });
    const { size, blocks, mode } = await stat(path);
    t.strictSame([size, blocks * 512 >= MIB, mode & 0o777], [MIB, preallocate, 0o600]);
    await t.rejects(open(path), { code: 'IN_USE', message: /another process or device has it locked/ });
    await created.close();
    await writeFile(path, 'kept', { flag: 'r+' });
    const again = await open(path, { size: MIB });
    t.equal((await readFile(path, 'latin1')).slice(0, 4), 'kept');
    await again.close();
    await t.rejects(open(path, { size: 2 * MIB }), { message: /it has 1048576 bytes, not the 2097152 configured/ });
  }
});

/** Of a device that has that size, in bytes, and users; of a store that is not open any more. */
const left = (size: number, identity?: string): LeftBackend => ({
  files: [],
  size,
  blockSize: 4096,
  announced: { size, blockSize: null, facts, identity },
});

t.test('a file that was about to grow is served with the size that its users know', async (t) => {
  const path = at('growing');
  await (await open(path, { size: MIB })).close();
  await truncate(path, 2 * MIB);
  for (const size of [MIB, undefined]) {
    const store = await openStore({ ...usual, path, size }, 4096, left(MIB));
    t.equal(store.size, MIB);
    await store.check();
    await store.close();
  }
  t.equal((await stat(path)).size, 2 * MIB);
  const message = /it shrank from 4194304 to 2097152 bytes; restore it/;
  await t.rejects(openStore({ ...usual, path }, 4096, left(4 * MIB)), { message });
});

t.test('the users of a device are given nothing but the store that it was made of', async (t) => {
  const path = at('used');
  const options = { ...usual, path, size: MIB };
  const first = await open(path, { size: MIB });
  await first.close();
  const again = left(MIB, first.identity);
  await writeFile(path, 'kept', { flag: 'r+' });
  const second = await openStore(options, 4096, again);
  t.equal(second.identity, first.identity, 'whatever is written to it');
  await second.close();

  await rename(path, at('used-first'));
  await t.rejects(openStore(options, 4096, again), {
    code: 'BACKEND',
    message: /there is no such file any more; put that back/,
  });
  await t.rejects(stat(path), { code: 'ENOENT' });
  await writeFile(path, Buffer.alloc(MIB));
  await t.rejects(openStore(options, 4096, again), {
    code: 'BACKEND',
    message: /it is not what its device was made of/,
  });
  const unknown = await openStore(options, 4096, left(MIB));
  t.not(unknown.identity, first.identity);
  await unknown.close();
  const unused = await openStore(options, 4096, { ...again, size: null });
  await unused.close();

  await rename(at('used-first'), path);
  await truncate(path, 0);
  for (const inheritance of [again, left(MIB)]) {
    await t.rejects(openStore(options, 4096, inheritance), {
      message: /it shrank from 1048576 to 0 bytes; restore it/,
    });
  }
  t.equal((await stat(path)).size, 0, 'nor is it filled with zeros');

  await unlink(path);
  await writeFile(path, Buffer.alloc(MIB));
  const message = /it is not what its device was made of/;
  await t.rejects(openStore(options, 4096, again), { message }, 'though ext4 gave it the same number');
});

t.test('what was left open is served, and checked, whatever the path names', async (t) => {
  const path = at('left-open');
  const first = await open(path, { size: MIB });
  await rename(path, at('left-open-first'));
  await writeFile(path, Buffer.alloc(MIB));
  const second = await openStore({ ...usual, path }, 4096, {
    ...left(MIB, first.identity),
    files: parkedFiles(parkFiles([first.fd])),
  });
  await first.close();
  t.equal(second.identity, first.identity);
  await t.rejects(second.check(), { message: /it is not what was opened; put that back/ });
  await rename(at('left-open-first'), path);
  await t.resolves(second.check());
  await second.close();
});

const openAsItIs = (path: string, options: Partial<StoreOptions> = {}) =>
  openStore({ ...usual, path, ...options }, null);

t.test('a file that another program has locked is refused, unless nobody can write to it here', async (t) => {
  const path = at('locked');
  await writeFile(path, Buffer.alloc(MIB));
  const lock =
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX, 1); print(1, flush=True); sys.stdin.read()";
  const locker = spawn('python3', ['-c', lock, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  await once(locker.stdout, 'data');
  const message = new RegExp(`locked failed: process ${String(locker.pid)} has locked it, or a part of it; end that`);
  await t.rejects(openAsItIs(path), { message, code: 'IN_USE' });
  await (await openAsItIs(path, { readOnly: true })).close();
  locker.stdin.end();
  await once(locker, 'exit');
  await (await openAsItIs(path)).close();
});

t.test('without a word of the user a file has the blocks that it was made for', async (t) => {
  const path = at('made-for');
  const created = await openAsItIs(path, { size: MIB });
  t.match(created, { blockSize: 4096, choices: [{ what: 'blockSize', value: 4096, why: 'the data is new' }, {}] });
  await created.close();
  execFileSync('mkfs.ext4', ['-qFb', '1024', path]);
  const small = await openAsItIs(path);
  t.match(small, { blockSize: 1024, choices: [{ why: 'the ext4 in it' }, { what: 'direct' }] });
  await small.close();
  const asSaid = await open(path, { direct: false });
  t.match(asSaid, { blockSize: 4096, choices: [] });
  await asSaid.close();
});

t.test('a disk ends with its last whole block', async (t) => {
  const path = at('odd');
  await writeFile(path, Buffer.alloc(3 * 512 + 100));
  const store = await openAsItIs(path);
  t.match(store, { size: 3 * 512, warning: `the last 100 bytes of ${path} are no whole block and not part of it` });
  await store.check();
  await store.close();
  t.equal((await stat(path)).size, 3 * 512 + 100);
  await writeFile(path, 'a');
  await t.rejects(openAsItIs(path), { message: /odd failed: it has 1 bytes, which is less than one block of 512$/ });
});

t.test('an image in a form of its own is refused, unless it is said to be a disk', async (t) => {
  const path = at('image.vhdx');
  await writeFile(path, 'vhdxfile'.padEnd(MIB, '\0'));
  const message = /image\.vhdx failed: it is a VHDX image; convert it \(qemu-img convert -O raw\), or give a blockSize/;
  await t.rejects(openAsItIs(path), { message, code: 'BACKEND' });
  await (await open(path)).close();
  const inUse = await openStore({ ...usual, path }, 4096, left(MIB));
  await inUse.close();
});

t.test('an empty file is one whose creation was not finished', async (t) => {
  await writeFile(at('empty'), '');
  const store = await open(at('empty'), { size: MIB });
  t.equal((await stat(at('empty'))).size, MIB);
  await store.close();
});

t.test('a creation that fails leaves nothing', async (t) => {
  await t.rejects(open(at('huge'), { size: 2 ** 52, preallocate: true }), { code: 'BACKEND' });
  await t.rejects(stat(at('huge')), { code: 'ENOENT' });
  await t.rejects(open(at('absent')), { message: /there is no such file; give a size to create it/ });
  await t.rejects(open(at('absent'), { size: MIB, readOnly: true }), { message: /there is no such file/ });
  await t.rejects(open(at('no/such/directory'), { size: MIB }), { message: /\(ENOENT\)$/ });
});

t.test('what is neither a file nor a block device is refused without waiting for it', async (t) => {
  execFileSync('mkfifo', [at('fifo')]);
  await t.rejects(open(at('fifo')), { message: /it is a FIFO; name a file or a block device/ });
  await t.rejects(open(directory), { message: /it is a directory/ });
  await t.rejects(open('/'), { message: /it is a directory/ });
  await t.rejects(open('/dev/null'), { message: /it is a character device/ });
});

t.test('a symbolic link is followed only where nobody else could have made it', async (t) => {
  await mkdir(at('own'));
  await mkdir(at('shared'));
  await writeFile(at('own/image'), Buffer.alloc(4096));
  await symlink('../own/image', at('own/link'));
  await symlink(at('own'), at('shared/link'));
  await chmod(at('shared'), 0o1777);
  const store = await open(at('own/link'));
  t.equal(store.size, 4096);
  await t.rejects(open(at('shared/link/image')), { message: /others could have made the symbolic link link/ });
  await t.resolves(store.check());
  await symlink('loop', at('own/loop'));
  await t.rejects(open(at('own/loop')), { message: /too many symbolic links/ });
  await store.close();
});

t.test('a store is checked for being what was opened, and not smaller', async (t) => {
  const path = at('checked');
  const store = await open(path, { size: MIB });
  await t.resolves(store.check());
  await truncate(path, 2 * MIB);
  await t.resolves(store.check(), 'more of it does no harm');
  await truncate(path, MIB - 1);
  await t.rejects(store.check(), { code: 'BACKEND', message: /it shrank from 1048576 to 1048575 bytes; restore it/ });
  await truncate(path, MIB);
  await rename(path, at('moved'));
  await t.rejects(store.check(), { message: /there is no such file any more; put that back/ });
  await writeFile(path, Buffer.alloc(MIB));
  await t.rejects(store.check(), { message: /it is not what was opened/ });
  await rename(at('moved'), path);
  await t.resolves(store.check());
  await store.close();
});
