import { SupervisorError } from '../errors.js';
import { parseJson } from '../config/json.js';

/** What `fault add` is given, as the object that the configuration has: JSON, or `key=value` words that mean the same. */
export function ruleOfWords(words: readonly string[]): unknown {
  const [first = ''] = words;
  if (first.trimStart().startsWith('{')) {
    if (words.length > 1) throw wrong(words[1] ?? '', 'expected nothing after the JSON');
    return parseJson(first, 'rule');
  }
  const rule: Record<string, unknown> = {};
  for (const word of words) {
    const [key, value] = split(word, '=');
    if (Object.hasOwn(rule, key)) throw wrong(word, `${key} is there already`);
    const read = Object.hasOwn(KEYS, key) ? KEYS[key] : undefined;
    if (read === undefined || value === undefined) {
      throw wrong(word, `expected KEY=VALUE with one of ${Object.keys(KEYS).join(', ')}`);
    }
    rule[key] = read(value);
  }
  return rule;
}

const text = (value: string): string => value;
/** What is no number stays text, and is refused as what it is. */
const number = (value: string): number | string =>
  /^[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$/.test(value) ? Number(value) : value;

const KEYS: Readonly<Record<string, (value: string) => unknown>> = {
  id: text,
  on: (value) => value.split(','),
  range: text,
  every: number,
  after: number,
  count: number,
  probability: number,
  per: text,
  from: text,
  for: text,
  whileFile: text,
  afterHitOf: text,
  seed: number,
  do: action,
};

/** `ACTION`, or `ACTION:ARGUMENT[:ARGUMENT]`. */
const ACTIONS: Readonly<Record<string, (args: readonly string[]) => unknown>> = {
  error: ([name = '']) => ({ error: name }),
  delay: ([kind = '', ...rest]) => {
    if (kind === 'uniform') return { delay: { uniform: rest } };
    if (kind === 'exponential') return { delay: { exponential: rest[0] ?? '' } };
    if (kind === 'samples') return { delay: { samples: (rest[0] ?? '').split(',') } };
    return { delay: kind };
  },
  hang: ([watchdog]) => (watchdog === undefined ? 'hang' : { hang: { watchdog: watchdog === 'watchdog' || watchdog } }),
  drop: () => 'drop',
  torn: ([sectors = '', then]) => ({ torn: { sectors: number(sectors), ...(then === undefined ? {} : { then }) } }),
  corrupt: ([kind = '', many = '', last]) => {
    if (kind === 'byte') return { corrupt: { byte: number(many), value: number(last ?? '') } };
    const stuck = last === undefined ? {} : { stuck: last === 'stuck' || last };
    return { corrupt: { [kind]: number(many), ...stuck } };
  },
  short: () => 'short',
  misdirect: ([by = '']) => ({ misdirect: { by } }),
  full: ([after = '']) => ({ full: { after } }),
  throttle: (args) => ({
    throttle: Object.fromEntries(
      args.map((arg) => {
        const [limit, value = ''] = split(arg, '/');
        return [limit, limit === 'iops' ? number(value) : value];
      }),
    ),
  }),
  crash: ([when = '']) => ({ crash: when }),
  stop: () => 'stop',
  badBlocks: ([at = '', failing]) => ({
    badBlocks: { at: at.split(','), ...(failing === undefined ? {} : { failingWrites: number(failing) }) },
  }),
};

function action(value: string): unknown {
  const [name = '', ...args] = value.split(':');
  const make = Object.hasOwn(ACTIONS, name) ? ACTIONS[name] : undefined;
  if (make === undefined) throw wrong(`do=${value}`, `expected one of ${Object.keys(ACTIONS).join(', ')}`);
  return make(args);
}

function split(text: string, separator: string): readonly [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}

function wrong(word: string, expected: string): SupervisorError {
  return new SupervisorError(`rule: ${JSON.stringify(word)}: ${expected}`, { code: 'CONFIG' });
}
