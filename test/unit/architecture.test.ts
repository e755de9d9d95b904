import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

/** The list in docs/architecture.md, in which folders stand on each other, is what the imports are. */

const root = fileURLToPath(new URL('../../../', import.meta.url));
const read = (path: string): string => readFileSync(join(root, path), 'utf8');

const [, list = ''] = /```\n(src\/cli\/ .*?)```/s.exec(read('docs/architecture.md')) ?? [];
const floors = list
  .trim()
  .split('\n')
  .map((line) => line.split(' ', 1)[0] ?? '');

const sources = ['src', 'backends'].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts'))
    .map((path) => join(folder, path)),
);

/** The entry that names the file, or its folder. */
function floorOf(path: string): string {
  const folder = `${dirname(path)}/`;
  const names = [path, folder, `${dirname(folder)}/*/`];
  return names.find((name) => floors.includes(name)) ?? '';
}

function importsOf(path: string): string[] {
  const specifiers = read(path).matchAll(/(?:from|import\()\s*'(\.{1,2}\/[^']+)\.js'/g);
  return Array.from(specifiers, ([, specifier = '']) => relative(root, join(root, dirname(path), `${specifier}.ts`)));
}

t.test('every folder is in the list', (t) => {
  t.ok(floors.length > 20);
  t.strictSame(
    sources.filter((path) => floorOf(path) === ''),
    [],
  );
  const inhabited = new Set(sources.map(floorOf));
  t.strictSame(
    floors.filter((floor) => !inhabited.has(floor)),
    [],
  );
  t.end();
});

t.test('nothing imports from above', (t) => {
  const upwards = sources.flatMap((path) =>
    importsOf(path)
      .filter((imported) => floors.indexOf(floorOf(imported)) < floors.indexOf(floorOf(path)))
      .map((imported) => `${path} imports ${imported}`),
  );
  t.strictSame(upwards, []);
  t.end();
});
