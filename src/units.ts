/** Bytes. JavaScript counts exactly so far, and twice as far, and the kernel farther; beyond any device that exists. */
export const LARGEST_DEVICE = 2 ** 52;

/** The units by their names in lower case; no two names differ in case alone. */
const SIZE_UNITS: Readonly<Record<string, number>> = Object.fromEntries<number>([
  ['', 1],
  ['b', 1],
  ...['k', 'm', 'g', 't', 'p'].flatMap((letter, index) => [
    ...['', 'i', 'ib'].map((rest): [string, number] => [letter + rest, 1024 ** (index + 1)]),
    [`${letter}b`, 1000 ** (index + 1)] as [string, number],
  ]),
]);

const DURATION_UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1e3, min: 60e3, h: 3600e3 };

/** In nanoseconds. */
const FINE_DURATION_UNITS: Readonly<Record<string, number>> = {
  ns: 1,
  us: 1e3,
  ms: 1e6,
  s: 1e9,
  min: 60e9,
  h: 3600e9,
};

function parseQuantity(text: string, units: Readonly<Record<string, number>>): number | undefined {
  const match = /^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$/.exec(text);
  const unit = match && Object.hasOwn(units, match[2] ?? '') ? units[match[2] ?? ''] : undefined;
  if (!match || unit === undefined) return undefined;
  const value = Number(match[1]) * unit;
  return Number.isSafeInteger(value) ? value : undefined;
}

/** Bytes of `512MiB`, `10G`, `1.5k` or a plain number; K = Ki = KiB = 1024, KB = 1000. undefined: not a whole size. */
export function parseSize(value: string | number): number | undefined {
  if (typeof value === 'string') return parseQuantity(value.toLowerCase(), SIZE_UNITS);
  return Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}

/** Milliseconds of `250ms`, `60s`, `5min`, `1h`. undefined: not a duration. */
export function parseDuration(text: string): number | undefined {
  return /[a-z]$/.test(text) ? parseQuantity(text, DURATION_UNITS) : undefined;
}

/** Nanoseconds of `100us`, `1.5ms`, `2s`. undefined: not a duration. */
export function parseNanoseconds(text: string): number | undefined {
  return /[a-z]$/.test(text) ? parseQuantity(text, FINE_DURATION_UNITS) : undefined;
}

/** `512M`, `1.5G`: as `ls -h` and lsblk show sizes, rounded to one decimal. */
export function formatSize(bytes: number): string {
  const units = ['B', 'K', 'M', 'G', 'T', 'P'];
  // Compared after rounding, so that 1048575 is 1M and not 1024K.
  let value = bytes;
  while (units.length > 1 && Number(value.toFixed(1)) >= 1024) {
    value /= 1024;
    units.shift();
  }
  return `${Number(value.toFixed(1))}${units[0] ?? ''}`;
}
