const SIZE_UNITS: Readonly<Record<string, number>> = {
  '': 1,
  B: 1,
  K: 2 ** 10,
  KiB: 2 ** 10,
  KB: 1e3,
  M: 2 ** 20,
  MiB: 2 ** 20,
  MB: 1e6,
  G: 2 ** 30,
  GiB: 2 ** 30,
  GB: 1e9,
  T: 2 ** 40,
  TiB: 2 ** 40,
  TB: 1e12,
  P: 2 ** 50,
  PiB: 2 ** 50,
  PB: 1e15,
};

const DURATION_UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1e3, min: 60e3, h: 3600e3 };

function parseQuantity(text: string, units: Readonly<Record<string, number>>): number | undefined {
  const match = /^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$/.exec(text);
  const unit = match && Object.hasOwn(units, match[2] ?? '') ? units[match[2] ?? ''] : undefined;
  if (!match || unit === undefined) return undefined;
  const value = Number(match[1]) * unit;
  return Number.isSafeInteger(value) ? value : undefined;
}

/** Bytes of `512MiB`, `10G`, `1.5K` or a plain number; K = KiB = 1024, KB = 1000. undefined: not a whole size. */
export function parseSize(value: string | number): number | undefined {
  if (typeof value === 'string') return parseQuantity(value, SIZE_UNITS);
  return Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}

/** Milliseconds of `250ms`, `60s`, `5min`, `1h`. undefined: not a duration. */
export function parseDuration(text: string): number | undefined {
  return /[a-z]$/.test(text) ? parseQuantity(text, DURATION_UNITS) : undefined;
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
  return `${String(Number(value.toFixed(1)))}${units[0] ?? ''}`;
}
