import { printParseErrorCode, visit } from 'jsonc-parser';
import { SupervisorError } from '../errors.js';
import { printable } from '../printable.js';

/** Deeper than anything we accept, and shallow enough for every recursive reader behind us. */
const DEEPEST = 16;

/**
 * JSON.parse for text from outside: says where it is broken, and refuses what JSON.parse passes silently
 * and what is only ever there by mistake or malice (duplicate keys, `__proto__`, absurd nesting).
 */
export function parseJson(text: string, source: string): unknown {
  const body = text.startsWith('\ufeff') ? text.slice(1) : text;
  if (body.trim() === '') throw invalid(source, 'is empty; expected a JSON object');
  inspect(body, source);
  try {
    return JSON.parse(body);
  } catch (error) {
    throw invalid(source, `is not JSON: ${printable(String(error))}`, error);
  }
}

function inspect(body: string, source: string): void {
  const open: Set<string>[] = [];
  const enter = (line: number, character: number): void => {
    open.push(new Set());
    // Thrown from here, before the visitor, which is recursive, can run out of stack.
    if (open.length > DEEPEST) throw invalidAt(source, line, character, `nested deeper than ${DEEPEST} levels`);
  };
  const leave = (): void => void open.pop();
  visit(
    body,
    {
      onObjectBegin: (_offset, _length, line, character) => enter(line, character),
      onArrayBegin: (_offset, _length, line, character) => enter(line, character),
      onObjectEnd: leave,
      onArrayEnd: leave,
      onObjectProperty: (key, _offset, _length, line, character) => {
        if (key === '__proto__') throw invalidAt(source, line, character, 'key "__proto__" is not allowed');
        const keys = open.at(-1);
        if (keys?.has(key)) throw invalidAt(source, line, character, `duplicate key ${JSON.stringify(key)}`);
        keys?.add(key);
      },
      onError: (code, _offset, _length, line, character) => {
        const what = printParseErrorCode(code).replace(/(?!^)[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
        throw invalidAt(source, line, character, `not JSON: ${what.charAt(0).toLowerCase()}${what.slice(1)}`);
      },
    },
    { disallowComments: true, allowTrailingComma: false, allowEmptyContent: false },
  );
}

function invalidAt(source: string, line: number, character: number, problem: string): SupervisorError {
  return invalid(`${source}:${line + 1}:${character + 1}`, printable(problem));
}

function invalid(where: string, problem: string, cause?: unknown): SupervisorError {
  return new SupervisorError(`${where}: ${problem}`, { code: 'CONFIG', cause });
}
