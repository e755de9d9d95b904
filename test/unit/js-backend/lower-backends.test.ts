import t from 'tap';
import type { LowerBackend, OpenBackend, OpenLower } from '../../../backends/interface.js';
import { LowerBackends, isNamedIn } from '../../../backends/module/lower-backends.js';
import { takeLower } from '../../../src/js-backend/lower.js';
import { facts } from '../supervisor/device/harness.js';

/** Opens whatever is asked for, and keeps what it was asked and told. */
function rig() {
  const calls: string[] = [];
  const openLower: OpenLower = (asked, directory, { device, inherited }) => {
    const { type, size, made = false } = asked as { type: string; size: number; made?: boolean };
    calls.push(`open ${type} for ${device} in ${directory}, of ${(inherited?.files ?? []).join()}`);
    const did = (what: string) => (): Promise<void> => {
      calls.push(`${what} ${device}`);
      return Promise.resolve();
    };
    const backend: OpenBackend = {
      size,
      facts,
      files: type === 'null' ? [] : [100 + calls.length],
      created: made,
      dataPaths: ['copy'],
      check: did('check'),
      close: did('close'),
      remove: did('remove'),
    };
    return Promise.resolve({ kind: 'native', name: type, backend });
  };
  return { calls, lower: new LowerBackends({ device: 'disk', openLower }) };
}

t.test('what is asked for is opened under a name of its own, and described', async (t) => {
  const { calls, lower } = rig();
  await lower.add({ type: 'file', size: 4096 }, '/etc');
  await lower.add({ type: 'null', size: 8192 }, '/etc');
  t.strictSame(calls, ['open file for disk.1 in /etc, of ', 'open null for disk.2 in /etc, of ']);
  t.match(lower.described, [
    { asked: { type: 'file', size: 4096 }, store: { kind: 'native', name: 'file', size: 4096, parked: true } },
    { asked: { type: 'null', size: 8192 }, store: { kind: 'native', name: 'null', size: 8192, parked: false } },
  ]);
  t.strictSame(lower.files, [101]);
  await lower.check();
  await lower.close();
  t.strictSame(calls.slice(2), ['check disk.1', 'check disk.2', 'close disk.1', 'close disk.2']);
});

t.test('a successor gives each what its files are parked in', async (t) => {
  const { calls, lower } = rig();
  const native = (name: string, parked: boolean): LowerBackend => ({
    asked: { type: name, size: 4096 },
    store: { kind: 'native', name, parked, size: 4096, blockSize: null, facts },
  });
  const module: LowerBackend = { asked: { type: './a.js' }, store: { kind: 'module', path: '/a.js', options: {} } };
  await lower.takeOver([native('null', false), native('file', true), module, native('ram', true)], [7, 8], '/');
  t.strictSame(calls, [
    'open null for disk.1 in /, of ',
    'open file for disk.2 in /, of 7',
    'open ram for disk.4 in /, of 8',
  ]);
  t.strictSame(lower.described[2], module);
});

t.test('what fails removes what was made for it alone', async (t) => {
  const { calls, lower } = rig();
  await lower.add({ type: 'ram', size: 4096, made: true }, '/');
  await lower.add({ type: 'ram', size: 4096 }, '/');
  await lower.undo();
  t.strictSame(calls.slice(2), ['close disk.1', 'close disk.2', 'remove disk.1']);
});

t.test('it is not endless', async (t) => {
  const { lower } = rig();
  for (let count = 0; count < 16; count++) await lower.add({ type: 'null', size: 4096 }, '/');
  await t.rejects(lower.add({ type: 'null', size: 4096 }, '/'), {
    code: 'BACKEND',
    message: /has below it failed: it asks for more than 16/,
  });
});

t.test('a path counts as named where the options have it, however deep and however written', async (t) => {
  const options = { disks: [{ type: 'file', path: './a/../disk.img' }], key: '/etc/key', size: 4096, none: null };
  for (const path of ['/srv/disk.img', 'disk.img', './disk.img', '/etc/key'])
    t.ok(isNamedIn(options, { type: 'file', path }, '/srv'), path);
  for (const path of ['/etc/shadow', '/disk.img', '/srv', 'disk.img/..'])
    t.notOk(isNamedIn(options, { type: 'file', path }, '/srv'), path);
  t.ok(isNamedIn(options, { type: 'ram', size: 4096 }, '/srv'), 'there is no path');
});

t.test('two that are asked for in the same words are two', async (t) => {
  const one = (size: number): LowerBackend => ({
    asked: { type: 'ram', size },
    store: { kind: 'native', name: 'ram', parked: true, size, blockSize: null, facts },
  });
  const lower = [one(1), one(2), one(1)];
  const given = new Set<number>();
  const take = (size: number): number => takeLower(lower, { size, type: 'ram' }, given);
  t.strictSame([take(1), take(1), take(1), take(2)], [0, 2, -1, 1]);
});
