import { chmod, chown, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { loadConfig } from '../../../src/config/load.js';
import { writableByOthers } from '../../../src/trusted.js';

/** Nobody's in particular. */
const STRANGER = 54_321;
const skip = process.geteuid?.() === 0 ? false : 'only root has anything to fear';

/** In /tmp, which is sticky: tap's own directories may be anybody's. */
async function folder(t: Test): Promise<string> {
  const directory = await mkdtemp('/tmp/trusted-');
  t.teardown(() => rm(directory, { recursive: true }));
  await mkdir(join(directory, 'sub'), { mode: 0o755 });
  await writeFile(join(directory, 'sub/config.json'), '{"devices":[]}', { mode: 0o644 });
  return directory;
}

t.test('what others may write to is found', { skip }, async (t) => {
  const directory = await folder(t);
  const file = join(directory, 'sub/config.json');
  const sub = join(directory, 'sub');
  const where = (sticky = true): Promise<string | undefined> => writableByOthers(file, { sticky });
  t.equal(await where(), undefined);
  t.equal(await where(false), '/tmp', 'a sticky folder only where that is enough');
  await chmod(file, 0o664);
  t.equal(await where(), file);
  await chmod(file, 0o646);
  t.equal(await where(), file);
  await chmod(file, 0o1666);
  t.equal(await where(), file, 'a sticky file is nothing');
  await chmod(file, 0o644);
  await chown(file, STRANGER, 0);
  t.equal(await where(), file);
  await chown(file, 0, 0);
  await chmod(sub, 0o775);
  t.equal(await where(), sub);
  await chmod(sub, 0o755);
  await chown(sub, STRANGER, 0);
  t.equal(await where(), sub);
  await chmod(sub, 0o1777);
  t.equal(await where(), sub, 'the owner of a sticky folder can replace what is in it');
});

t.test('who called sudo is trusted', { skip }, async (t) => {
  const directory = await folder(t);
  const file = join(directory, 'sub/config.json');
  await chown(file, STRANGER, STRANGER);
  t.equal(await writableByOthers(file, { sticky: true }), file);
  t.teardown(() => delete process.env.SUDO_UID);
  process.env.SUDO_UID = String(STRANGER);
  t.equal(await writableByOthers(file, { sticky: true }), undefined);
});

t.test('such a configuration is refused in one line', { skip }, async (t) => {
  const directory = await folder(t);
  const file = join(directory, 'sub/config.json');
  t.strictSame(await loadConfig(file), { devices: [] });
  await chmod(join(directory, 'sub'), 0o777);
  await t.rejects(loadConfig(file), {
    code: 'CONFIG',
    message: `reading configuration ${file} failed: others may write to ${directory}/sub; chown root and chmod go-w`,
  });
});
