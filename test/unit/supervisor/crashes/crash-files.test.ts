import { lstat, mkdir, readFile, readdir, symlink, writeFile, chmod } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { CrashFiles } from '../../../../src/supervisor/crashes/crash-files.js';
import { silent } from '../device/harness.js';

const at = (second: number) => `2026-01-01T00:00:${String(second).padStart(2, '0')}.000Z`;

function rig(t: Test, most?: number) {
  const state = join(t.testdir(), 'state');
  const warnings: string[] = [];
  const log = { ...silent, warn: (_fields: object, message: string) => void warnings.push(message) };
  const files = new CrashFiles(state, log, most);
  const save = (second: number, device = 'ram0', report: object = { second }) =>
    files.save(files.pathOf({ device, generation: 1, at: at(second) }), report);
  return { state, crashes: join(state, 'crashes'), warnings, files, save };
}

t.test('reports are files of their own, in order of time, readable by owner and group', async (t) => {
  const { crashes, save, files, warnings } = rig(t);
  t.strictSame(await Promise.all([save(2), save(1, 'a.b-c')]), [true, true]);
  t.strictSame(await readdir(crashes), ['20260101T000001000Z-a.b-c-1.json', '20260101T000002000Z-ram0-1.json']);
  const path = files.pathOf({ device: 'ram0', generation: 1, at: at(2) });
  t.strictSame(JSON.parse(await readFile(path, 'utf8')), { second: 2 });
  t.equal((await lstat(path)).mode & 0o777, 0o640);
  t.equal((await lstat(crashes)).mode & 0o777, 0o750);
  await save(2, 'ram0', { pauseMs: 5 });
  t.strictSame(JSON.parse(await readFile(path, 'utf8')), { pauseMs: 5 }, 'written anew');
  t.strictSame([(await readdir(crashes)).length, warnings], [2, []]);
});

t.test('the oldest are removed beyond the most, and nothing else is', async (t) => {
  const { crashes, save } = rig(t, 3);
  await save(0);
  for (const name of ['notes.json', 'a.txt', '20250101T000000000Z.json']) await writeFile(join(crashes, name), '');
  for (const second of [5, 1, 2, 3, 4]) await save(second);
  t.strictSame(
    (await readdir(crashes)).filter((name) => name.includes('-')).map((name) => name.slice(13, 15)),
    ['03', '04', '05'],
  );
  for (const name of ['notes.json', 'a.txt', '20250101T000000000Z.json']) t.ok((await readdir(crashes)).includes(name));
});

t.test('no link is followed', async (t) => {
  const { state, crashes, save, warnings } = rig(t);
  const target = join(t.testdirName, 'target');
  await writeFile(target, 'precious');
  await mkdir(state, { mode: 0o750 });
  await symlink(t.testdirName, crashes);
  t.equal(await save(1), false);
  t.match(warnings, [/crashes is not a directory that only we can write to; crash reports are in the log/]);
  const inside = rig(t);
  await mkdir(inside.crashes, { recursive: true, mode: 0o750 });
  await writeFile(target, 'precious');
  await symlink(target, join(inside.crashes, `.${process.pid}.tmp`));
  await symlink(target, inside.files.pathOf({ device: 'ram0', generation: 1, at: at(1) }));
  t.equal(await inside.save(1), true);
  t.equal(await readFile(target, 'utf8'), 'precious');
});

t.test('a directory that others can write to is not used; it is said once, and again after it worked', async (t) => {
  const { state, save, warnings } = rig(t);
  await mkdir(state);
  await chmod(state, 0o777);
  t.strictSame(await Promise.all([save(1), save(2), save(3)]), [false, false, false]);
  t.equal(warnings.length, 1);
  await chmod(state, 0o750);
  t.equal(await save(4), true);
  await chmod(state, 0o770);
  t.strictSame([await save(5), await save(6), warnings.length], [false, false, 2]);
});

t.test('what waits is bounded', async (t) => {
  const { save } = rig(t);
  const outcomes = await Promise.all(Array.from({ length: 130 }, () => save(1)));
  t.equal(outcomes.filter((saved) => saved).length, 100);
  t.equal(await save(2), true);
});
