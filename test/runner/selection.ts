import { parseArgs } from 'node:util';

export const PHASES = ['lint', 'unit', 'native', 'vm'] as const;
export type Phase = (typeof PHASES)[number];

export const KERNELS: readonly string[] = ['6.12', 'newest'];

/** With `--full`. */
export const ALL_KERNELS: readonly string[] = ['6.12', '6.18', 'newest'];

export class UsageError extends Error {}

/** Which tests to run. */
export interface Selection {
  readonly kernels: readonly string[];
  /** Every file on every kernel, also where the file says that one is enough. */
  readonly full: boolean;
  wants(phase: Phase): boolean;
  /** Whether files were named at all. */
  readonly named: boolean;
  /** Whether to run a file; without a word that is part of a file's name, every one. */
  wantsFile(name: string): boolean;
}

/** `[PHASE...] [WORD...] [--full] [--kernel K]...`: only these phases, only files with a WORD in their name. */
export function parseSelection(args: readonly string[]): Selection {
  let parsed;
  try {
    parsed = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: { kernel: { type: 'string', multiple: true }, full: { type: 'boolean', default: false } },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
  const { full, kernel = full ? ALL_KERNELS : KERNELS } = parsed.values;
  const phases = parsed.positionals.filter(isPhase);
  const words = parsed.positionals.filter((word) => !isPhase(word));
  return {
    kernels: kernel,
    full,
    named: words.length > 0,
    wants: (phase) => {
      if (phases.length > 0) return phases.includes(phase);
      if (parsed.values.kernel) return phase === 'vm';
      // The whole of lint has no file that a word could choose.
      return words.length === 0 || phase !== 'lint';
    },
    wantsFile: (name) => words.length === 0 || words.some((word) => name.includes(word)),
  };
}

function isPhase(word: string): word is Phase {
  return PHASES.some((phase) => phase === word);
}
