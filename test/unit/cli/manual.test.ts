import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Argument, Command, Option } from 'commander';
import t, { type Test } from 'tap';
import { CliExit } from '../../../src/cli/exit-codes.js';
import { createProgram } from '../../../src/cli/program.js';
import { configJsonSchema } from '../../../src/config/schema.js';
import { DaemonExit, errorCodes } from '../../../src/error-codes.js';
import { CHANGEABLE } from '../../../src/supervisor/reload-plan.js';
import { status } from '../supervisor/device/status.js';

const root = fileURLToPath(new URL('../../../../', import.meta.url));

/** What is written about the command line, the configuration and the tree is true of them. */

const read = (path: string): string => readFileSync(join(root, path), 'utf8');
const manual = read('man/ublk-supervisor.8');
const readme = read('README.md');
const { commands } = createProgram();

/** That the description gives to commands which ask the supervisor, once for all of them. */
const COMMON = '--runtime-dir';

/** Of a manual page, up to the next one. */
function section(page: string, title: string): string {
  const [, text] = page.split(`\n.Sh ${title}\n`);
  if (text === undefined) throw new Error(`the manual has no section ${title}`);
  return text.split('\n.Sh ')[0] ?? '';
}

/** `-J`, `-b` and `--dry-run` of `.Fl Jb` and `.Op Fl -dry-run`. */
function flagsIn(page: string): string[] {
  return [...page.matchAll(/\bFl ([\w-]+(?: , [\w-]+)*)/g)].flatMap(([, names = '']) =>
    names
      .split(' , ')
      .flatMap((name) => (name.startsWith('-') ? `-${name}` : Array.from(name, (letter) => `-${letter}`))),
  );
}

/** Each has every option that the other has. */
function compareOptions(t: Test, where: string, command: Command, flags: readonly string[]): void {
  const is = (flag: string) => (option: Option) => option.long === flag || option.short === flag;
  for (const option of command.options.filter(({ long }) => long !== COMMON || command.name() === 'start')) {
    t.ok(
      flags.some((flag) => is(flag)(option)),
      `${where} has ${command.name()} ${option.flags}`,
    );
  }
  for (const flag of flags.filter((each) => each !== '--help')) {
    t.ok(command.options.some(is(flag)), `the command line has ${command.name()} ${flag}`);
  }
}

t.test('the synopsis of the manual has every command, with every option and argument, and no other', async (t) => {
  const blocks = section(manual, 'SYNOPSIS')
    .split(/^\.Nm$/m)
    .slice(1);
  t.strictSame(
    blocks.map((block) => /^\.Cm (\S+)$/m.exec(block)?.[1]),
    commands.map((command) => command.name()),
  );
  const argumentText = (argument: Argument): string =>
    `${argument.required ? '' : 'Op '}${argument.name()}${argument.variadic ? '...' : ''}`;
  for (const [index, command] of commands.entries()) {
    const lines = (blocks[index] ?? '').split('\n');
    compareOptions(t, 'the synopsis', command, flagsIn(lines.join('\n')));
    const words = lines.filter((line) => /^\.(Op )?Ar/.test(line)).map((line) => line.slice(1).split(' '));
    t.strictSame(
      words.map(
        (line) => `${line[0] === 'Op' ? 'Op ' : ''}${line.filter((word) => !/^(Op|Ar|Ns)$/.test(word)).join('')}`,
      ),
      command.registeredArguments.map(argumentText),
      command.name(),
    );
  }
});

t.test('the description in the manual has every option of every command, and no other', async (t) => {
  const description = section(manual, 'DESCRIPTION');
  const names = commands.map((command) => command.name());
  const items = description.split(new RegExp(`^\\.It Cm (?=(?:${names.join('|')})\\b)`, 'm')).slice(1);
  t.strictSame(
    items.map((item) => item.split(/\s/, 1)[0]),
    names,
  );
  for (const [index, command] of commands.entries()) {
    compareOptions(t, 'the description', command, flagsIn(items[index] ?? ''));
  }
});

t.test('the table of README has every command, and no option that there is not', async (t) => {
  const table = /^## Commands\n(.*?)^## /ms.exec(readme)?.[1] ?? '';
  const rows = [...table.matchAll(/^\| (`[^|]*) \|(.*)\|$/gm)].map(([, cell = '', text = '']) => ({
    named: [...cell.matchAll(/`([a-z][a-z-]*)/g)].map(([, name = '']) => name),
    flags: [...`${cell}${text}`.matchAll(/--[a-z-]+/g)].map(([flag]) => flag),
  }));
  t.strictSame(rows.flatMap(({ named }) => named).sort(), commands.map((command) => command.name()).sort());
  for (const { named, flags } of rows) {
    const options = commands.filter((command) => named.includes(command.name())).flatMap((command) => command.options);
    for (const flag of flags) {
      t.ok(
        options.some(({ long }) => long === flag),
        `${named.join()} ${flag}`,
      );
    }
  }
});

t.test('the manual has every exit code, and no other', async (t) => {
  const codes = [...section(manual, 'EXIT STATUS').matchAll(/^\.It (\d+)$/gm)].map(([, code]) => Number(code));
  t.strictSame(new Set(codes), new Set<number>([...Object.values(CliExit), ...Object.values(DaemonExit)]));
});

t.test('the manual has every error code, and says what it means', async (t) => {
  const list = section(read('man/ublk-supervisor.3'), 'ERRORS').matchAll(/^\.It Li (\w+)\n(.*)$/gm);
  const meanings = Object.entries(errorCodes).map(([code, { meaning }]) => [code, meaning]);
  t.strictSame(
    Object.fromEntries(Array.from(list, ([, code, meaning]) => [code, meaning])),
    Object.fromEntries(meanings),
  );
});

t.test('the manual has every field of the status', async (t) => {
  const documented = section(manual, 'STATUS DOCUMENT') + section(manual, 'CRASHES');
  const fields = new Set<string>();
  const collect = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return;
    if (!Array.isArray(value)) for (const key of Object.keys(value)) fields.add(key);
    Object.values(value).forEach(collect);
  };
  collect(status);
  for (const field of fields) t.ok(new RegExp(`\\b(Va|Cm)\\b[^\\n]* ${field}\\b`).test(documented), field);
});

t.test('the manual says what a reload can change', async (t) => {
  const [, paragraph = ''] = /^Only\n(.*?)can change while a device is served/ms.exec(manual) ?? [];
  const named = paragraph
    .split('\n')
    .filter((line) => line.startsWith('.Cm '))
    .flatMap((line) => line.slice('.Cm '.length).split(' , '));
  t.strictSame(
    named
      .map((word) => word.replace(' ,', ''))
      .filter((word) => word !== 'recovery')
      .sort(),
    [...CHANGEABLE].map((path) => path.replace(/^.*\./, '')).sort(),
  );
});

t.test('the manual has every key of the configuration, and nothing else', async (t) => {
  const page = read('man/ublk-supervisor.json.5');
  const items = new Set(
    [...page.matchAll(/^\.It Cm ([^\n]*)$/gm)].flatMap(([, words = '']) => words.replace(/ , No .*/, '').split(' , ')),
  );
  const keys = new Set<string>();
  const values = new Set<unknown>();
  const collect = (schema: unknown): void => {
    if (typeof schema !== 'object' || schema === null) return;
    for (const [word, value] of Object.entries(schema)) {
      if (word === 'properties') for (const key of Object.keys(value as object)) keys.add(key);
      if (word === 'const') values.add(value);
      if (word === 'enum') for (const each of value as unknown[]) values.add(each);
      collect(value);
    }
  };
  collect(configJsonSchema());
  // Of a backend: it has no item, its values have.
  keys.delete('type');
  for (const key of keys) t.ok(items.has(key), key);
  for (const item of items) t.ok(keys.has(item) || values.has(item), item);
});

t.test('test/vm/README.md names the files that npm test leaves out', async (t) => {
  const [, listed = ''] = /`\/\/ run: full`.*?:\n(.*?)\.\n/s.exec(read('test/vm/README.md')) ?? [];
  const full = readdirSync(join(root, 'test/vm'))
    .filter((name) => name.endsWith('.test.ts') && /^\/\/ run: full$/m.test(read(`test/vm/${name}`)))
    .map((name) => name.replace('.test.ts', ''));
  t.strictSame(
    [...listed.matchAll(/`([^`]+)`/g)].map(([, name]) => name),
    full.sort(),
  );
});

t.test('every path that the documents name is there', async (t) => {
  const folder = (name: string): string[] => readdirSync(join(root, name)).map((file) => `${name}/${file}`);
  const documents = ['README.md', 'vm/README.md', 'test/vm/README.md', ...folder('docs'), ...folder('man')];
  const tops = readdirSync(root, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && !/^\.|^node_modules$/.test(entry.name))
    .map(({ name }) => name);
  const path = new RegExp(`(?<![\\w/.-])(?:\\./|\\$PWD/)?((?:${tops.join('|')})/[\\w./-]*\\w)`, 'g');
  let found = 0;
  for (const document of documents) {
    for (const [, named = ''] of read(document).matchAll(path)) {
      const there = [named, `${named}.ts`, `${named}.test.ts`].some((each) => existsSync(join(root, each)));
      t.ok(there, `${document}: ${named}`);
      found += 1;
    }
  }
  t.ok(found > 100, 'the pattern finds paths');
});
