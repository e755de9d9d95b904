import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { createProgram } from '../../src/cli/program.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));

/** What is written about the command line and the tree is true of them. */

const read = (path: string): string => readFileSync(join(root, path), 'utf8');

/** That the description gives to commands which ask the supervisor, once for all of them; and --help. */
const COMMON = ['--runtime-dir', '--help'];

t.test('the synopsis of the manual has every command, with every option', async (t) => {
  const [, synopsis = ''] = /^\.Sh SYNOPSIS\n(.*?)^\.Sh/ms.exec(read('man/ublk-supervisor.8')) ?? [];
  const blocks = synopsis.split(/^\.Nm$/m).slice(1);
  const names = blocks.map((block) => /^\.Cm (\S+)$/m.exec(block)?.[1]);
  const { commands } = createProgram();
  t.strictSame(
    names,
    commands.map((command) => command.name()),
  );
  for (const [index, command] of commands.entries()) {
    const block = blocks[index] ?? '';
    for (const { long = '', short } of command.options.filter((option) => !COMMON.includes(option.long ?? ''))) {
      const shortFlag = short === undefined ? null : new RegExp(`Fl [A-Za-z]*${short.slice(1)}`);
      t.ok(block.includes(`Fl ${long.slice(1)}`) || shortFlag?.test(block), `${command.name()} ${long}`);
    }
  }
});

t.test('the table of README has every command', async (t) => {
  const cells = [...read('README.md').matchAll(/^\| (`[^|]*) \|/gm)].map(([, cell = '']) => cell);
  for (const command of createProgram().commands) {
    t.ok(
      cells.some((cell) => new RegExp(`\`${command.name()}[ \`]`).test(cell)),
      command.name(),
    );
  }
});

t.test('every path that the documents name is there', async (t) => {
  const documents = [
    'README.md',
    'vm/README.md',
    'test/vm/README.md',
    ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`),
  ];
  for (const document of documents) {
    const named = read(document).matchAll(
      /(?<![\w/.-])(?:src|backends|test|scripts|docs|deploy|examples|man|vm|bench|demo)\/[\w./-]*\w/g,
    );
    for (const [path] of named) {
      const found = [path, `${path}.ts`, `${path}.test.ts`].some((each) => existsSync(join(root, each)));
      t.ok(found, `${document}: ${path}`);
    }
  }
});
