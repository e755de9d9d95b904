import * as z from 'zod';
import { LONGEST_TEXT } from './messages.js';

/** Apart from messages.ts, because a queue process validates nothing and boots faster without zod. */

const text = z.string().max(LONGEST_TEXT);

/** What the device announces; `Announced` of src/js-backend/load.ts. */
const opened = z.strictObject({
  type: z.literal('opened'),
  size: z.number(),
  blockSize: z.number().nullable(),
  maxQueues: z.int().min(1).nullable(),
  readOnly: z.boolean(),
  rotational: z.boolean(),
  idempotentWrites: z.boolean(),
  flush: z.boolean(),
  discard: z.boolean(),
  writeZeroes: z.boolean(),
});

/** The module could be loaded, and takes its options. */
const loaded = z.strictObject({ type: z.literal('loaded'), maxQueues: z.int().min(1).nullable() });

/** A probe's backend asked for what it does not have below it yet. */
const wants = z.strictObject({ type: z.literal('wants'), asked: z.record(z.string(), z.unknown()) });

/** `RequestIdentity` of src/native/request.ts. */
const request = z.strictObject({ operation: z.int(), startSector: z.number(), sectors: z.number() });

/** Queue process to supervisor. */
export const queueMessage = z.discriminatedUnion('type', [
  opened,
  loaded,
  wants,
  /** The process is about to end because of this. */
  z.strictObject({ type: z.literal('ending'), message: text, stack: text }),
  /** `count` requests since the last such message were answered with an error that the backend did not name; one of them. */
  z.strictObject({ type: z.literal('error'), message: text, stack: text, count: z.int().min(1), request }),
  z.strictObject({ type: z.literal('log'), level: z.enum(['info', 'warn', 'error']), message: text }),
]);

export type QueueMessage = z.infer<typeof queueMessage>;
export type OpenedMessage = z.infer<typeof opened>;
export type LoadedMessage = z.infer<typeof loaded>;
export type WantsMessage = z.infer<typeof wants>;
/** What a backend has to say while it serves. */
export type BackendReport = Extract<QueueMessage, { type: 'error' | 'log' }>;
