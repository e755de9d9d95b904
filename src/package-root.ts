import { fileURLToPath } from 'node:url';

/** This package's directory: two levels above this file in dist/src/, and above the files of dist/programs/ that have it, too. */
export const packageRoot = fileURLToPath(new URL('../../', import.meta.url));

/** The program of that name, as `scripts/bundle` makes it. */
export const programPath = (name: 'look-proc' | 'queue-proc' | 'store-proc' | 'ublk-supervisor'): string =>
  `${packageRoot}dist/programs/${name}.js`;
