/** One column of a table about rows of type `Row`. */
export interface Column<Row> {
  /** Upper case; its lower case is the key in JSON. */
  readonly name: string;
  readonly description: string;
  /** For programs: bytes and counts as numbers. */
  value(row: Row): string | number | boolean | readonly number[] | null;
  /** For people, where it differs from `value`. */
  text?(row: Row): string;
  readonly right?: boolean;
}

export interface TableStyle {
  readonly headings: boolean;
  /** Single spaces, for programs that split at them; blanks inside a value are escaped. */
  readonly raw: boolean;
  /** `value` in place of `text`, so that sizes are in bytes. */
  readonly exact: boolean;
}

const NOTHING = '-';

/** Lines without boxes, headings in upper case, numbers to the right, as ls and lsblk have them. */
export function formatTable<Row>(columns: readonly Column<Row>[], rows: readonly Row[], style: TableStyle): string[] {
  const lines = rows.map((row) => columns.map((column) => cell(column, row, style)));
  if (style.headings) lines.unshift(columns.map(({ name }) => name));
  if (style.raw) return lines.map((cells) => cells.map((text) => text.replace(/[\s\\]/g, hexEscape)).join(' '));
  const widths = columns.map((_column, index) => Math.max(0, ...lines.map((cells) => cells[index]?.length ?? 0)));
  return lines.map((cells) =>
    cells
      .map((text, index) =>
        columns[index]?.right ? text.padStart(widths[index] ?? 0) : text.padEnd(widths[index] ?? 0),
      )
      .join('  ')
      .trimEnd(),
  );
}

/** The rows as objects, keys in lower case. */
export function tableObjects<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): object[] {
  return rows.map((row) => Object.fromEntries(columns.map((column) => [column.name.toLowerCase(), column.value(row)])));
}

/** `A,B` names columns; `+A,B` adds to the usual ones. undefined: one of them does not exist. */
export function chooseColumns<Row>(
  choice: string | undefined,
  all: readonly Column<Row>[],
  usual: readonly string[],
): readonly Column<Row>[] | undefined {
  const asked = choice?.split(',').map((name) => name.replace(/^\+/, '').toUpperCase()) ?? [];
  const names = choice === undefined || choice.startsWith('+') ? [...usual, ...asked] : asked;
  const chosen = names.map((name) => all.find((column) => column.name === name));
  return chosen.every((column) => column !== undefined) ? chosen : undefined;
}

function cell<Row>(column: Column<Row>, row: Row, { exact }: TableStyle): string {
  const value = column.value(row);
  const text = !exact && value !== null && column.text ? column.text(row) : String(value ?? '');
  return text === '' ? NOTHING : text;
}

function hexEscape(character: string): string {
  return `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
}
