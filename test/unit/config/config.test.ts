import { readFileSync, readdirSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import t from 'tap';
import { loadConfig } from '../../../src/config/load.js';
import { configJsonSchema, parseConfig, parseDevice } from '../../../src/config/schema.js';
import { SupervisorError } from '../../../src/errors.js';

const root = fileURLToPath(new URL('../../../../', import.meta.url));
const corpus = join(root, 'test/unit/config/cases');
const smallest = { name: 'a', backend: { type: 'null', size: 4096 } };

function refusal(text: string): string {
  try {
    parseConfig(text, 'CONFIG');
  } catch (error) {
    if (error instanceof SupervisorError && error.code === 'CONFIG') return error.message;
    throw error;
  }
  return 'accepted';
}

t.test('C1 every broken configuration of the corpus is refused with the lines beside it', async (t) => {
  const names = readdirSync(corpus).filter((name) => name.endsWith('.json'));
  t.ok(names.length > 80);
  for (const name of names) {
    const expected = readFileSync(join(corpus, name.replace(/json$/, 'expected')), 'utf8');
    t.equal(`${refusal(readFileSync(join(corpus, name), 'utf8'))}\n`, expected, name);
  }
});

t.test('the example is accepted and means what it says', async (t) => {
  const { devices } = await loadConfig(join(root, 'examples/config.json'));
  const recovery = { mode: 'reissue', auto: true, maxRestarts: 10, windowMs: 60_000, poisonAfter: 3, onGiveUp: 'park' };
  t.strictSame(devices, [
    {
      name: 'scratch',
      id: 0,
      queues: 2,
      depth: 128,
      blockSize: 4096,
      readOnly: false,
      dataPath: 'auto',
      partitions: false,
      requestTimeoutMs: 60_000,
      user: undefined,
      coreDump: false,
      faults: undefined,
      backend: { type: 'ram', size: 512 * 2 ** 20 },
      recovery,
    },
    {
      name: 'sink',
      id: undefined,
      queues: 1,
      depth: 128,
      blockSize: undefined,
      readOnly: false,
      dataPath: 'auto',
      partitions: false,
      requestTimeoutMs: 60_000,
      user: undefined,
      coreDump: false,
      faults: undefined,
      backend: { type: 'null', size: 2 ** 40 },
      recovery,
    },
  ]);
});

t.test('a byte order mark and no devices at all are fine', async (t) => {
  t.strictSame(parseConfig('\ufeff{ "devices": [] }', 'CONFIG'), { devices: [] });
});

t.test('the limits themselves are allowed', async (t) => {
  const device = { ...smallest, id: 2 ** 20 - 1, queues: 128, depth: 4096, blockSize: 512 };
  t.match(parseDevice({ ...device, name: 'a'.repeat(63) }), { queues: 128, depth: 4096, id: 2 ** 20 - 1 });
  t.match(parseDevice({ ...smallest, id: 0, queues: 1, depth: 1 }), { queues: 1, depth: 1, id: 0 });
  for (const [type, size] of [
    ['null', 2 ** 52],
    ['ram', 2 ** 44],
  ] as const) {
    t.match(parseDevice({ ...smallest, backend: { type, size } }), { backend: { size } });
    t.throws(() => parseDevice({ ...smallest, backend: { type, size: size + 512 } }), { code: 'CONFIG' });
  }
});

t.test('a user is one of this machine, by name or by number', async (t) => {
  const user = (value: unknown): unknown => parseDevice({ ...smallest, user: value }).user;
  t.strictSame(user('root'), { uid: 0, gid: 0 });
  t.strictSame(user(0), { uid: 0, gid: 0 });
  t.strictSame(user(4_000_000_000), { uid: 4_000_000_000, gid: 4_000_000_000 }, 'nobody has it: its own group');
  for (const bad of ['no-such-user', '', 'root\0x', -1, 1.5, 2 ** 32 - 1, null, {}]) {
    t.throws(() => user(bad), { code: 'CONFIG', message: /^device: user: expected [^\n]+$/ }, JSON.stringify(bad));
  }
});

t.test('1024 devices are the most', async (t) => {
  const many = (count: number): string =>
    JSON.stringify({
      devices: Array.from({ length: count }, (_none, index) => ({ ...smallest, name: `d${index}` })),
    });
  t.equal(parseConfig(many(1024), 'CONFIG').devices.length, 1024);
  t.equal(refusal(many(1025)), 'CONFIG: devices: expected at most 1024 devices, got 1025');
});

t.test('thousands of problems make a short answer', async (t) => {
  const lines = refusal(JSON.stringify({ devices: Array.from({ length: 1000 }, () => ({})) })).split('\n');
  t.equal(lines.length, 21);
  t.equal(lines[20], 'CONFIG: and 1980 more');
});

t.test('absurd nesting is refused before anything recurses', async (t) => {
  t.equal(refusal('['.repeat(500_000)), 'CONFIG:1:17: nested deeper than 16 levels');
  t.equal(refusal('{"a":'.repeat(100_000)), 'CONFIG:1:81: nested deeper than 16 levels');
});

t.test('files that cannot be a configuration', async (t) => {
  const directory = t.testdir({ 'text.json': '{ "devices": [] }' });
  const path = (name: string): string => join(directory, name);
  await writeFile(path('large.json'), `{ "devices": [] }${' '.repeat(2 ** 20)}`);
  await writeFile(path('binary.json'), Buffer.from([0x7b, 0xff, 0xfe, 0x7d]));
  await t.rejects(loadConfig(path('large.json')), { code: 'CONFIG', message: /larger than 1 MiB/ });
  await t.rejects(loadConfig('/dev/zero'), { code: 'CONFIG', message: /larger than 1 MiB/ });
  await t.rejects(loadConfig(path('binary.json')), { code: 'CONFIG', message: /not UTF-8/ });
  await t.rejects(loadConfig(directory), { code: 'CONFIG', errno: 21, message: /\(EISDIR\)/ });
  await t.rejects(loadConfig(path('none.json')), { code: 'CONFIG', errno: 2, message: /no such file.*\(ENOENT\)/ });
  t.strictSame(await loadConfig(path('text.json')), { devices: [] });
});

t.test('whatever the text, it is a configuration or refused as one, and no prototype changes', async (t) => {
  const before = Object.getOwnPropertyNames(Object.prototype).join();
  const keys = fc.constantFrom(
    'devices',
    'name',
    'backend',
    'type',
    'size',
    'recovery',
    '__proto__',
    'constructor',
    'toString',
  );
  const { tree } = fc.letrec((tie) => ({
    tree: fc.oneof({ maxDepth: 4 }, fc.jsonValue(), fc.array(tie('tree')), fc.dictionary(keys, tie('tree'))),
  }));
  fc.assert(
    fc.property(
      fc.oneof(
        tree.map((value) => JSON.stringify(value)),
        fc.string(),
      ),
      (text) => {
        const answer = refusal(text);
        return answer === 'accepted' || answer.split('\n').every((line) => line.startsWith('CONFIG:'));
      },
    ),
    { numRuns: 1000 },
  );
  t.equal(Object.getOwnPropertyNames(Object.prototype).join(), before);
});

t.test('any one wrong field is named', async () => {
  const wrong = fc.oneof(
    fc.string(),
    fc.integer({ max: 0 }),
    fc.integer({ min: 4097 }),
    fc.constant(null),
    fc.double().filter((n) => !Number.isInteger(n)),
  );
  fc.assert(
    fc.property(fc.constantFrom('queues', 'depth'), wrong, (key, value) => {
      return refusal(JSON.stringify({ devices: [{ ...smallest, [key]: value }] })).startsWith(
        `CONFIG: devices[0].${key}: expected `,
      );
    }),
  );
});

t.test('a single device is named "device" in errors', async (t) => {
  t.throws(() => parseDevice(undefined), { code: 'CONFIG', message: 'device: expected an object, got nothing' });
  t.throws(() => parseDevice({ ...smallest, depth: 0 }), { message: 'device: depth: expected 1 to 4096, got 0' });
});

t.test('the JSON Schema that the package ships is current', async (t) => {
  const shipped: unknown = JSON.parse(readFileSync(join(root, 'examples/config.schema.json'), 'utf8'));
  t.strictSame(shipped, configJsonSchema(), 'run: node dist/src/config/write-schema.js');
});
