import { Parser, type FinalResults, type Result } from 'tap-parser';

/** What one program's tests came to. */
export interface Outcome {
  passed: number;
  skipped: number;
  /** Names of the tests that failed, the way there joined by ` > `. */
  failures: string[];
}

/**
 * What counts as one test. `points`: each `ok` line that does not sum up others (node:test, native tests).
 * `subtests`: each innermost subtest; the `ok` lines in it are single assertions (tap).
 */
export type Unit = 'points' | 'subtests';

/** An `ok` or `not ok` line, with what it sums up where that is a subtest. */
interface Node {
  readonly name: string;
  readonly ok: boolean;
  readonly skipped: boolean;
  readonly milliseconds: number;
  readonly children?: readonly Node[];
}

/** Counts the tests of TAP output while it arrives. */
export class TapCounter {
  readonly #parser = new Parser();
  readonly #unit: Unit;
  readonly #nodes: readonly Node[];
  #complete = false;

  /** @param onNode called for each outermost line as it arrives; in tap's output that is a file. */
  constructor(unit: Unit, onNode?: (name: string, outcome: Outcome, milliseconds: number) => void) {
    this.#unit = unit;
    this.#nodes = collect(this.#parser, (node) => onNode?.(node.name, outcomeOf(node, unit), node.milliseconds));
    this.#parser.on('complete', ({ ok }: FinalResults) => {
      this.#complete = ok;
    });
  }

  write(text: string): void {
    this.#parser.write(text);
  }

  /** To be called once, when the output has ended. Output that ended before its plan is a failure, too. */
  end(): Outcome {
    this.#parser.end();
    if (this.#nodes.length === 0) return { passed: 0, skipped: 0, failures: ['no test ran'] };
    return outcomeOf(
      { name: 'the output ends early', ok: this.#complete, skipped: false, milliseconds: 0, children: this.#nodes },
      this.#unit,
    );
  }
}

/** The parser's lines, complete when it is. */
function collect(parser: Parser, onNode: (node: Node) => void = () => undefined): readonly Node[] {
  const nodes: Node[] = [];
  let children: readonly Node[] | undefined;
  parser.on('child', (child: Parser) => {
    children = collect(child);
  });
  parser.on('assert', ({ name, ok, skip, todo, time }: Result) => {
    const skipped = Boolean(skip || todo);
    const node = { name, ok: ok || skipped, skipped, milliseconds: time ?? 0, ...(children ? { children } : {}) };
    children = undefined;
    nodes.push(node);
    onNode(node);
  });
  return nodes;
}

function outcomeOf(node: Node, unit: Unit): Outcome {
  const parts = (node.children ?? []).filter(({ children }) => unit === 'points' || children);
  const outcome: Outcome = { passed: 0, skipped: 0, failures: [] };
  if (parts.length === 0) {
    if (node.skipped) outcome.skipped = 1;
    else if (node.ok) outcome.passed = 1;
    else outcome.failures.push(node.name);
    return outcome;
  }
  for (const part of parts) {
    const inner = outcomeOf(part, unit);
    outcome.passed += inner.passed;
    outcome.skipped += inner.skipped;
    outcome.failures.push(...inner.failures.map((name) => (part.children ? `${part.name} > ${name}` : name)));
  }
  // A test can fail after all of its subtests passed.
  if (!node.ok && outcome.failures.length === 0) outcome.failures.push(node.name);
  return outcome;
}

/** TAP output without the lines of subtests that passed and had nothing to say. */
export function withoutPassed(output: string): string {
  return output.replace(/^( *)# Subtest: .*\n\1ok .*\n\1 {2}---\n(?:\1 {2}.*\n)*?\1 {2}\.\.\.\n/gm, '');
}
