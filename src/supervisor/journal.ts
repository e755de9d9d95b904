import { constants, readFileSync } from 'node:fs';
import { mkdir, open, readFile, readdir, rename, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { deviceInput } from '../config/schema.js';
import type { DeviceConfig } from '../config/types.js';
import { messageOf } from '../errors.js';
import type { Log } from '../log/log.js';

const facts = z.strictObject({
  volatileCache: z.boolean(),
  fua: z.boolean(),
  discard: z.boolean(),
  writeZeroes: z.boolean(),
  readOnly: z.boolean(),
  rotational: z.boolean(),
  idempotentWrites: z.boolean(),
});

const input = z.record(z.string(), z.unknown());

const store = z.strictObject({
  size: z.int(),
  blockSize: z.int().nullable(),
  identity: z.string().optional(),
  facts,
});

const lower = z.strictObject({
  asked: input,
  store: z.discriminatedUnion('kind', [
    store.extend({ kind: z.literal('native'), name: z.string(), parked: z.boolean() }),
    z.strictObject({ kind: z.literal('module'), path: z.string(), options: input }),
  ]),
});

const announced = store.extend({ lower: z.array(lower).readonly().optional() });

const entry = z.strictObject({
  /** The id of the boot in which the device was made; no device outlives it. */
  boot: z.string(),
  id: z.int(),
  /** `add` made the device, so no configuration file has it. */
  added: z.boolean(),
  announced,
  /** As in the configuration's `devices`. */
  device: z.unknown(),
});

/** What is known of a device that the kernel may still have. */
export interface JournalEntry {
  readonly id: number;
  readonly added: boolean;
  /** What the backend said when it was opened. */
  readonly announced: z.infer<typeof announced>;
  readonly config: DeviceConfig;
}

/**
 * One small file for each device, with which the successor of a supervisor that died takes its devices over. The kernel
 * and the zygote know which devices there are; the journal says how they were configured. So nothing waits for it, and
 * nothing fails because of it: a device whose file is lost is taken for what the configuration says it is.
 */
export class Journal {
  readonly #directory: string;
  readonly #parse: (input: unknown) => DeviceConfig;
  readonly #log: Log;
  readonly #boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  #last: Promise<void> = Promise.resolve();
  #warned = false;

  constructor(directory: string, parse: (input: unknown) => DeviceConfig, log: Log) {
    this.#directory = directory;
    this.#parse = parse;
    this.#log = log;
  }

  /** The entries of this boot, by name; what cannot be read is left out with a warning. */
  async load(): Promise<ReadonlyMap<string, JournalEntry>> {
    const entries = new Map<string, JournalEntry>();
    const files = await readdir(this.#directory).catch(() => []);
    for (const file of files.filter((name) => name.endsWith('.json'))) {
      const name = file.slice(0, -'.json'.length);
      try {
        const { boot, device, ...rest } = entry.parse(JSON.parse(await readFile(this.#pathOf(name), 'utf8')));
        if (boot !== this.#boot) continue;
        const config = this.#parse(device);
        if (config.name === name) entries.set(name, { ...rest, config });
      } catch (error) {
        const path = this.#pathOf(name);
        this.#log.warn({ path }, `reading ${path} failed: ${messageOf(error)}; going on without it`);
      }
    }
    return entries;
  }

  /** Replaces what was written of the device of that name. */
  write({ config, ...rest }: JournalEntry): void {
    const text = JSON.stringify({ boot: this.#boot, ...rest, device: deviceInput(config) });
    this.#enqueue(async () => {
      const path = this.#pathOf(config.name);
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
      const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants;
      await using file = await open(`${path}.new`, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600);
      await file.writeFile(text);
      await file.sync();
      await rename(`${path}.new`, path);
    });
  }

  remove(name: string): void {
    this.#enqueue(async () => {
      await unlink(this.#pathOf(name)).catch((error: unknown) => {
        if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
      });
    });
  }

  /** Resolves when everything is written that was to be. */
  settled(): Promise<void> {
    return this.#last;
  }

  #pathOf(name: string): string {
    return join(this.#directory, `${name}.json`);
  }

  #enqueue(action: () => Promise<void>): void {
    this.#last = this.#last.then(action).catch((error: unknown) => {
      if (this.#warned) return;
      this.#warned = true;
      const consequence = 'a supervisor that takes over knows only what its configuration says';
      this.#log.warn({}, `writing to ${this.#directory} failed: ${messageOf(error)}; ${consequence}`);
    });
  }
}
