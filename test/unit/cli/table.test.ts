import t from 'tap';
import { chooseColumns, formatTable, tableObjects, type Column } from '../../../src/cli/table.js';
import { formatSize } from '../../../src/units.js';
import { printable } from '../../../src/printable.js';

interface Row {
  readonly name: string;
  readonly size: number;
  readonly reason: string | null;
}

const columns: readonly Column<Row>[] = [
  { name: 'NAME', description: '', value: ({ name }) => name },
  { name: 'SIZE', description: '', value: ({ size }) => size, text: ({ size }) => formatSize(size), right: true },
  { name: 'REASON', description: '', value: ({ reason }) => reason },
];
const rows: readonly Row[] = [
  { name: 'a', size: 1024, reason: null },
  { name: 'longer', size: 2 ** 30, reason: 'the backend is away' },
];
const plain = { headings: true, raw: false, exact: false };

t.test('columns line up, numbers to the right, nothing is a dash', async (t) => {
  t.strictSame(formatTable(columns, rows, plain), [
    'NAME    SIZE  REASON',
    'a         1K  -',
    'longer    1G  the backend is away',
  ]);
});

t.test('exact shows bytes, headings can go', async (t) => {
  t.strictSame(formatTable(columns.slice(0, 2), rows, { ...plain, headings: false, exact: true }), [
    'a             1024',
    'longer  1073741824',
  ]);
});

t.test('a raw line splits into its columns at the spaces', async (t) => {
  const lines = formatTable(columns, rows, { ...plain, raw: true });
  t.strictSame(
    lines.map((line) => line.split(' ').length),
    [3, 3, 3],
  );
  t.match(lines[2], 'the\\x20backend');
});

t.test('objects have typed values', async (t) => {
  t.strictSame(tableObjects(columns, rows.slice(0, 1)), [{ name: 'a', size: 1024, reason: null }]);
});

t.test('an empty table is its headings', async (t) => {
  t.strictSame(formatTable(columns, [], plain), ['NAME  SIZE  REASON']);
  t.strictSame(formatTable(columns, [], { ...plain, headings: false }), []);
});

t.test('columns are chosen by name, or added with a plus', async (t) => {
  const names = (choice: string | undefined): string[] | undefined =>
    chooseColumns(choice, columns, ['NAME'])?.map(({ name }) => name);
  t.strictSame(names(undefined), ['NAME']);
  t.strictSame(names('size,name'), ['SIZE', 'NAME']);
  t.strictSame(names('+SIZE,+reason'), ['NAME', 'SIZE', 'REASON']);
  t.equal(names('NAME,COLOUR'), undefined);
  t.equal(names(''), undefined);
});

t.test('nothing that drives a terminal gets through', async (t) => {
  t.equal(printable('a\u001b[31mb\u009b2J\u202e\n\u0000'), 'a\\u001b[31mb\\u009b2J\\u202e\\u000a\\u0000');
  t.equal(printable('größe 日本'), 'größe 日本');
});
