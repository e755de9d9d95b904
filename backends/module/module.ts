import { closeSync } from 'node:fs';
import * as z from 'zod';
import { SupervisorError } from '../../src/errors.js';
import type { User } from '../../src/native/addon/accounts.js';
import type { OpenedMessage } from '../../src/channel/message-schema.js';
import type { LoadMessage } from '../../src/channel/messages.js';
import type { Backend, BackendModule, LeftBackend, OpenBackend } from '../interface.js';
import { LowerBackends, isNamedIn } from './lower-backends.js';
import { openMemoryFile, type MemoryFile } from './memory-file.js';
import { probe, tryLoading } from './probe.js';
import { trustedPath } from './trusted.js';

const dataPaths = ['copy'] as const;

/** A backend's path instead of its name; the rest is for the module to check. `directory`: what paths are relative to. */
export const moduleOptions = z
  .looseObject({
    type: z
      .string()
      .regex(/^(\/|\.\.?\/).*\.[cm]?[jt]s$/, { error: 'expected a path such as ./my-backend.js' })
      .describe('path of a backend in JavaScript or TypeScript, relative to the configuration: ./my-backend.js'),
  })
  .transform(({ type, ...options }) => ({ type: 'module' as const, path: type, options, directory: '/' }));

/** A backend of the user's, in JavaScript: one instance in each queue process, one more in a probe beforehand. */
export const moduleBackend: Backend<z.infer<typeof moduleOptions>> = {
  name: 'module',
  options: moduleOptions,
  dataPaths,
  async look({ path }) {
    await trustedPath(path);
    return null;
  },
  async tryLoading({ path, options, directory }, { device, user }) {
    return await tryLoading({ device, module: await trustedPath(path), options, directory }, user);
  },
  async open({ path, ...first }, context) {
    const { device, user, inherited } = context;
    const memory = await openMemoryFile(device, inherited);
    const lower = new LowerBackends(context);
    /** Resolves as the module is now, which may be another file: its path can be a link. */
    const opened = async (
      { options, directory }: Pick<BackendModule, 'options' | 'directory'>,
      announce: (load: LoadMessage) => Promise<Announced>,
    ): Promise<OpenBackend> => {
      const module = await trustedPath(path);
      const load = { device, module, options, directory, lower: lower.described };
      const { size, blockSize, maxQueues, facts } = await announce(load);
      return {
        size,
        ...(blockSize === null ? {} : { blockSize }),
        ...(maxQueues === undefined ? {} : { maxQueues }),
        facts,
        module: { path: module, options, directory, lower: lower.described },
        files: [memory.fd, ...lower.files],
        created: memory.created,
        dataPaths,
        check: () => lower.check(),
        renew: (wanted, user) => opened(wanted, (load) => announcedAgain(load, memory, lower, user)),
        close: async () => {
          closeSync(memory.fd);
          await lower.close();
        },
        remove: async () => {
          await memory.remove();
          await lower.remove();
        },
      };
    };
    const { directory } = first;
    try {
      const known = inherited?.announced ?? null;
      if (known !== null) await lower.takeOver(known.lower ?? [], inherited?.files.slice(1) ?? [], directory);
      // A device that exists goes on, even while its author is in the middle of changing the module.
      return await opened(first, (load) =>
        known === null ? announcedFirst(load, memory, lower, user) : Promise.resolve(known),
      );
    } catch (error) {
      closeSync(memory.fd);
      await lower.undo();
      if (memory.created) await memory.remove();
      throw error;
    } finally {
      for (const socket of inherited?.files.slice(1) ?? []) closeSync(socket);
    }
  },
};

type Announced = Pick<NonNullable<LeftBackend['announced']>, 'size' | 'blockSize' | 'maxQueues' | 'facts'>;

/** Opens below it what it asks for, until it asks for nothing more. */
async function announcedFirst(
  load: LoadMessage,
  memory: MemoryFile,
  lower: LowerBackends,
  user: User | undefined,
): Promise<Announced> {
  for (;;) {
    const answer = await probe({ ...load, lower: lower.described }, [memory.fd, ...lower.files], user);
    if (answer.type === 'opened') return announcedBy(answer);
    const { asked } = answer;
    if (user !== undefined && user.uid !== 0 && !isNamedIn(load.options, asked, load.directory)) {
      throw refused(load, `it asks for ${String(asked.path)}, which its options do not name, and runs as another user`);
    }
    await lower.add(asked, load.directory);
  }
}

/** Asks the module what it announces, with its code and its options as they are now. */
async function announcedAgain(
  load: LoadMessage,
  memory: MemoryFile,
  lower: LowerBackends,
  user: User | undefined,
): Promise<Announced> {
  const answer = await probe(load, [memory.fd, ...lower.files], user);
  if (answer.type === 'opened') return announcedBy(answer);
  const other = JSON.stringify(answer.asked);
  throw refused(load, `its device was made with other backends below it than ${other}; remove it and add it anew`);
}

function refused({ device, module }: LoadMessage, reason: string): SupervisorError {
  return new SupervisorError(`opening backend ${module} failed: ${reason}`, { code: 'BACKEND', device });
}

function announcedBy(opened: OpenedMessage): Announced {
  const { size, blockSize, maxQueues, flush, discard, writeZeroes, readOnly, rotational, idempotentWrites } = opened;
  const facts = { volatileCache: flush, fua: flush, discard, writeZeroes, readOnly, rotational, idempotentWrites };
  return { size, blockSize, facts, ...(maxQueues === null ? {} : { maxQueues }) };
}
