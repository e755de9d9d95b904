import { constants } from 'node:os';
import * as z from 'zod';
import { show } from '../problems.js';
import { parseNanoseconds, parseSize } from '../units.js';

/** Fault rules as a person writes them, in the configuration and for `fault add`. */

export const faultOperations = ['read', 'write', 'flush', 'discard', 'writeZeroes', 'fua'] as const;
export type FaultOperation = (typeof faultOperations)[number];

const WITH_DATA: readonly FaultOperation[] = ['read', 'write'];
const ALL: readonly FaultOperation[] = ['read', 'write', 'flush', 'discard', 'writeZeroes'];
const CHANGING: readonly FaultOperation[] = ['write', 'flush', 'discard', 'writeZeroes'];

/** Which operations an action makes sense for, and which it is for where the rule does not say. */
export const actions = {
  error: { possible: [...ALL, 'fua'], usual: ALL },
  delay: { possible: [...ALL, 'fua'], usual: ALL },
  hang: { possible: [...ALL, 'fua'], usual: ALL },
  drop: { possible: [...CHANGING, 'fua'], usual: CHANGING },
  torn: { possible: ['write', 'fua'], usual: ['write'] },
  corrupt: { possible: [...WITH_DATA, 'fua'], usual: WITH_DATA },
  short: { possible: ['read'], usual: ['read'] },
  misdirect: { possible: [...WITH_DATA, 'fua'], usual: WITH_DATA },
  full: { possible: ['write', 'fua', 'writeZeroes'], usual: ['write', 'writeZeroes'] },
  throttle: { possible: [...ALL, 'fua'], usual: ALL },
  crash: { possible: [...ALL, 'fua'], usual: ALL },
  stop: { possible: [...ALL, 'fua'], usual: ALL },
  badBlocks: { possible: [...WITH_DATA], usual: WITH_DATA },
} as const satisfies Record<
  string,
  { readonly possible: readonly FaultOperation[]; readonly usual: readonly FaultOperation[] }
>;

export type ActionName = keyof typeof actions;

/** Stretches of bad blocks in one rule. */
const MOST_STRETCHES = 64;

const whole = (min: number, max = Number.MAX_SAFE_INTEGER): z.ZodInt => {
  const error = ({ input }: { readonly input?: unknown }): string =>
    `expected a whole number from ${min}${max === Number.MAX_SAFE_INTEGER ? '' : ` to ${max}`}, got ${show(input)}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
};

/** Bytes, as a number or with a unit. */
const bytes = z.union([z.number(), z.string()]).refine((value) => parseSize(value) !== undefined, {
  error: ({ input }) => `expected bytes, such as 4096, 64KiB or 1GiB, got ${show(input)}`,
});

/** `-4KiB` too. */
const distance = z.union([z.number(), z.string()]).refine((value) => parseDistance(value) !== undefined, {
  error: ({ input }) => `expected a multiple of 512 bytes other than 0, such as 4KiB or -1MiB, got ${show(input)}`,
});

const time = z.string().refine((text) => parseNanoseconds(text) !== undefined, {
  error: ({ input }) => `expected a duration, such as 100us, 5ms or 2s, got ${show(input)}`,
});

/** `OFFSET+LENGTH`, or `OFFSET` for all from there on. */
const stretch = z.string().refine((text) => parseStretch(text) !== undefined, {
  error: ({ input }) => `expected OFFSET+LENGTH in bytes, such as 1GiB+64MiB, got ${show(input)}`,
});

const errno = z.string().refine((name) => errnoNumber(name) !== undefined, {
  error: ({ input }) => `expected the name of an errno, such as EIO or ENOSPC, got ${show(input)}`,
});

const probability = z.union([z.number(), z.string()]).refine((value) => parseProbability(value) !== undefined, {
  error: ({ input }) => `expected a number above 0 and up to 1, or 1:100000, got ${show(input)}`,
});

const delay = z.union([
  time,
  z.strictObject({ uniform: z.tuple([time, time]) }),
  z.strictObject({ exponential: time }),
  z.strictObject({ samples: z.array(time).min(1).max(256) }),
]);

const stuck = { stuck: z.boolean().optional() };
const corrupt = z.union([
  z.strictObject({ bits: whole(1, 512), ...stuck }),
  z.strictObject({ bytes: whole(1, 512), ...stuck }),
  z.strictObject({ byte: whole(0, 511), value: whole(0, 255) }),
]);

const action = z.union(
  [
    z.enum(['hang', 'drop', 'short', 'stop']),
    z.strictObject({ error: errno }),
    z.strictObject({ delay }),
    z.strictObject({ hang: z.strictObject({ watchdog: z.boolean() }) }),
    z.strictObject({
      torn: z.strictObject({ sectors: whole(0, 2 ** 20), then: z.enum(['ok', 'error', 'crash']).optional() }),
    }),
    z.strictObject({ corrupt }),
    z.strictObject({ misdirect: z.strictObject({ by: distance }) }),
    z.strictObject({ full: z.strictObject({ after: bytes }) }),
    z.strictObject({
      throttle: z.union([z.strictObject({ iops: whole(1, 1e9), bytes: bytes.optional() }), z.strictObject({ bytes })]),
    }),
    z.strictObject({ crash: z.enum(['before', 'after']) }),
    z.strictObject({
      badBlocks: z.strictObject({
        at: z.array(stretch).min(1).max(MOST_STRETCHES),
        failingWrites: whole(0, 1e6).optional(),
      }),
    }),
  ],
  {
    error: ({ input }) =>
      `expected "hang", "drop", "short", "stop" or an object with one of ${Object.keys(actions).join(', ')}, got ${show(input)}`,
  },
);

export type FaultActionInput = z.output<typeof action>;

export const faultId = z.string().regex(/^[a-z0-9][a-z0-9_.-]{0,62}$/, {
  error: ({ input }) =>
    `expected 1 to 63 of a-z, 0-9, "_", "." and "-", starting with a letter or digit, got ${show(input)}`,
});

export const faultRule = z
  .strictObject({
    id: faultId.optional().describe('what `fault list` calls the rule; left out, it gets one'),
    on: z
      .array(z.enum(faultOperations))
      .min(1)
      .optional()
      .describe(
        'the requests that it is for; left out, all that the action makes sense for. fua: writes that ask for it',
      ),
    range: stretch.optional().describe('bytes, OFFSET+LENGTH: requests that overlap it'),
    every: whole(1).optional().describe('each so manieth of the requests'),
    after: whole(0).optional().describe('so many requests are let through first'),
    count: whole(1).optional().describe('so many times, then never again'),
    probability: probability.optional().describe('a number from 0 to 1, or 1:100000'),
    per: z
      .enum(['request', 'sector'])
      .optional()
      .describe('what the probability is of; a sector that was chosen is chosen each time'),
    from: time.optional().describe('so long after the rule was made'),
    for: time.optional().describe('for so long'),
    whileFile: z
      .string()
      .regex(/^\//, { error: ({ input }) => `expected an absolute path, got ${show(input)}` })
      .optional()
      .describe('only while this file exists'),
    afterHitOf: faultId.optional().describe('only once the rule of this id has hit'),
    seed: whole(0).optional().describe('of its random choices; by default 0'),
    do: action.describe('what happens to the request'),
  })
  .superRefine((rule, context) => {
    const name = actionOf(rule.do);
    const { possible } = actions[name];
    const wrong = rule.on?.find((operation) => !(possible as readonly string[]).includes(operation));
    const refuse = (path: string, message: string): void => context.addIssue({ code: 'custom', path: [path], message });
    if (wrong !== undefined) refuse('on', `${name} makes no sense for ${wrong}; expected ${possible.join(', ')}`);
    if (name === 'drop' && rule.on?.includes('fua') === true && rule.on.length > 1) {
      refuse('on', 'drop of fua lets the write itself be done; expected a rule of its own for each');
    }
    const uniform = typeof rule.do === 'object' && 'delay' in rule.do ? rule.do.delay : null;
    if (typeof uniform === 'object' && uniform !== null && 'uniform' in uniform) {
      const [least = 0, most = 0] = uniform.uniform.map(parseNanoseconds);
      if (least > most) refuse('do', 'expected the shorter delay first');
    }
    if (rule.per === 'sector' && rule.probability === undefined) refuse('per', 'expected a probability beside it');
    if (rule.range !== undefined && rule.on?.every((operation) => operation === 'flush') === true) {
      refuse('range', 'a flush has no place; expected no range');
    }
  });

const MOST_RULES = 64;

/** The rules of a device, in the order in which they are tried. */
export const faultRules = z
  .array(faultRule)
  .max(MOST_RULES, { error: `expected at most ${MOST_RULES} rules` })
  .superRefine((rules, context) => {
    const known = new Set<string>();
    for (const [index, { id, afterHitOf }] of rules.entries()) {
      const refuse = (key: string, message: string): void =>
        context.addIssue({ code: 'custom', path: [index, key], message });
      if (afterHitOf !== undefined && !known.has(afterHitOf)) {
        refuse('afterHitOf', `expected the id of a rule before it, got ${show(afterHitOf)}`);
      }
      if (id !== undefined && known.has(id)) refuse('id', `${show(id)} is that of a rule before it`);
      if (id !== undefined) known.add(id);
    }
  });

export type FaultRuleInput = z.input<typeof faultRule>;
/** A rule as it was written. */
export type WrittenFaultRule = z.output<typeof faultRule>;
/** The same with its id. */
export type FaultRule = WrittenFaultRule & { readonly id: string };

/** The name of what a rule does. */
export function actionOf(what: FaultActionInput): ActionName {
  return (typeof what === 'string' ? what : Object.keys(what)[0]) as ActionName;
}

export function errnoNumber(name: string): number | undefined {
  return Object.hasOwn(constants.errno, name) ? (constants.errno as Record<string, number>)[name] : undefined;
}

/** undefined: none. */
export function parseProbability(value: number | string): number | undefined {
  const ratio = typeof value === 'string' ? /^([0-9.]+):([0-9.]+)$/.exec(value) : null;
  const number = ratio ? Number(ratio[1]) / Number(ratio[2]) : Number(value);
  return number > 0 && number <= 1 ? number : undefined;
}

/** undefined: none. `length` is undefined for what has no end. */
export function parseStretch(
  text: string,
): { readonly offset: number; readonly length: number | undefined } | undefined {
  const [from = '', many, ...more] = text.split('+');
  const offset = parseSize(from);
  const length = many === undefined ? undefined : parseSize(many);
  if (offset === undefined || more.length > 0 || (many !== undefined && !(length !== undefined && length > 0))) {
    return undefined;
  }
  return { offset, length };
}

export function parseDistance(value: number | string): number | undefined {
  const negative = typeof value === 'string' ? value.startsWith('-') : value < 0;
  const size = parseSize(typeof value === 'string' ? value.replace(/^-/, '') : Math.abs(value));
  if (size === undefined || size === 0 || size % 512 !== 0) return undefined;
  return negative ? -size : size;
}
