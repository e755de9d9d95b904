import { execFileSync } from 'node:child_process';
import { chmod, mkdir, readFile, rename, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { openStore, type StoreOptions } from '../../backends/file/store.js';

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

t.test('a file that was about to grow is served with the size that its users know', async (t) => {
  const path = at('growing');
  await (await open(path, { size: MIB })).close();
  await truncate(path, 2 * MIB);
  for (const size of [MIB, undefined]) {
    const store = await openStore({ ...usual, path, size }, 4096, { files: [], size: MIB });
    t.equal(store.size, MIB);
    await store.check();
    await store.close();
  }
  t.equal((await stat(path)).size, 2 * MIB);
  const missing = { files: [], size: 4 * MIB };
  await t.rejects(openStore({ ...usual, path }, 4096, missing), { message: /it has 2097152 bytes, not the 4194304/ });
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
  await t.rejects(store.check(), { message: /it is not what was opened; put that back/ });
  await writeFile(path, Buffer.alloc(MIB));
  await t.rejects(store.check(), { message: /it is not what was opened/ });
  await rename(at('moved'), path);
  await t.resolves(store.check());
  await store.close();
});
