import type { z } from 'zod';
import { SupervisorError } from './errors.js';
import { printable } from './printable.js';

/** More than a person fixes at once, and few enough that a hostile request cannot make a huge answer. */
const MOST_SHOWN = 20;

/**
 * Checks `value` against `schema` and rejects with one line per problem:
 * `config.json: devices[0].depth: expected 1 to 4096, got 5000`.
 */
export function validate<Output>(schema: z.ZodType<Output>, value: unknown, source: string): Output {
  const result = schema.safeParse(value, { error: explain, reportInput: true });
  if (result.success) return result.data;
  const lines = new Set(
    result.error.issues.flatMap(closest).map((issue) => printable(`${source}: ${pathOf(issue.path)}${issue.message}`)),
  );
  const shown = [...lines].slice(0, MOST_SHOWN);
  if (lines.size > shown.length) shown.push(`${source}: and ${lines.size - shown.length} more`);
  throw new SupervisorError(shown.join('\n'), { code: 'CONFIG' });
}

/**
 * Of a choice between kinds of objects, the problems with the kind that was meant: the one that `type` names, or that has
 * the right keys. Problems with `type` itself are told by the first kind.
 */
function closest(issue: z.core.$ZodIssue): readonly z.core.$ZodIssue[] {
  if (issue.code !== 'invalid_union') return [issue];
  const { errors } = issue;
  const [meant, ...others] = errors.filter((problems) => problems.every(({ path }) => path.length > 0));
  const named = errors.find((problems) => !problems.some(({ path }) => path[0] === 'type'));
  const byType = errors.flat().some(({ path }) => path[0] === 'type');
  const problems = byType ? (named ?? errors[0]) : others.length === 0 ? meant : undefined;
  if (problems === undefined) return [issue];
  return problems.map((inner) => ({ ...inner, path: [...issue.path, ...inner.path] })).flatMap(closest);
}

/** What was given, short enough for a line. */
export function show(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object' && value !== null) return 'an object';
  // JSON would say null for Infinity, which 1e999 is.
  const text = typeof value === 'number' ? String(value) : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

function pathOf(path: readonly PropertyKey[]): string {
  const text = path.map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`)).join('');
  return text === '' ? '' : `${text.replace(/^\./, '')}: `;
}

const TYPE_NAMES: Readonly<Record<string, string>> = {
  string: 'a string',
  number: 'a number',
  int: 'a whole number',
  boolean: 'true or false',
  object: 'an object',
  array: 'a list',
};

/** The message of every problem whose field does not bring its own. */
function explain(issue: z.core.$ZodRawIssue): string | undefined {
  switch (issue.code) {
    case 'invalid_type':
      return `expected ${typeName(issue.expected)}, got ${show(issue.input)}`;
    case 'invalid_value':
      return `expected ${oneOf(issue.values)}, got ${show(issue.input)}`;
    case 'unrecognized_keys':
      return `unknown key ${issue.keys.map((key) => show(key)).join(', ')}; allowed: ${keysOf(issue.inst).join(', ')}`;
    case 'invalid_union':
      return explainUnion(issue);
    default:
      return undefined;
  }
}

function explainUnion(issue: z.core.$ZodRawIssue<z.core.$ZodIssueInvalidUnion>): string {
  if (issue.discriminator !== undefined && issue.options !== undefined) {
    const given = (issue.input as Readonly<Record<string, unknown>>)[issue.discriminator];
    return `expected ${oneOf(issue.options as readonly unknown[])}, got ${show(given)}`;
  }
  const types = issue.errors.flat().map((inner) => (inner.code === 'invalid_type' ? typeName(inner.expected) : ''));
  return `expected ${[...new Set(types)].filter(Boolean).join(' or ')}, got ${show(issue.input)}`;
}

function typeName(expected: string): string {
  return TYPE_NAMES[expected] ?? expected;
}

/** `"a", "b" or "c"` */
export function oneOf(values: readonly unknown[]): string {
  const shown = values.map((value) => show(value));
  return shown.length === 1 ? shown.join() : `${shown.slice(0, -1).join(', ')} or ${shown.slice(-1).join()}`;
}

function keysOf(schema: unknown): string[] {
  const definition = (schema as z.core.$ZodObject | undefined)?._zod.def;
  return definition ? Object.keys(definition.shape) : [];
}
