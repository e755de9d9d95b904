import { closeSync } from 'node:fs';
import * as z from 'zod';
import type { User } from '../../src/native/binding.js';
import type { OpenedMessage } from '../../src/queue-proc/message-schema.js';
import type { Backend, BackendModule, Inheritance, OpenBackend } from '../interface.js';
import { openMemoryFile } from './memory-file.js';
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
  async open({ path, ...first }, { device, user, inherited }) {
    const memory = await openMemoryFile(device, inherited);
    /** Resolves as the module is now, which may be another file: its path can be a link. */
    const opened = async (
      { options, directory }: Pick<BackendModule, 'options' | 'directory'>,
      as: User | undefined,
      known: Announced | null = null,
    ): Promise<OpenBackend> => {
      const module = await trustedPath(path);
      const load = { device, module, options, directory };
      const { size, blockSize, maxQueues, facts } = known ?? announcedBy(await probe(load, memory.fd, as));
      return {
        size,
        ...(blockSize === null ? {} : { blockSize }),
        ...(maxQueues === undefined ? {} : { maxQueues }),
        facts,
        module: { path: module, options, directory },
        files: [memory.fd],
        created: memory.created,
        dataPaths,
        renew: (wanted, user) => opened(wanted, user),
        close: () => {
          closeSync(memory.fd);
          return Promise.resolve();
        },
        remove: () => memory.remove(),
      };
    };
    try {
      // A device that exists goes on, even while its author is in the middle of changing the module.
      return await opened(first, user, inherited?.announced);
    } catch (error) {
      closeSync(memory.fd);
      if (memory.created) await memory.remove();
      throw error;
    }
  },
};

type Announced = Pick<NonNullable<Inheritance['announced']>, 'size' | 'blockSize' | 'maxQueues' | 'facts'>;

function announcedBy(opened: OpenedMessage): Announced {
  const { size, blockSize, maxQueues, flush, discard, writeZeroes, readOnly, rotational, idempotentWrites } = opened;
  const facts = { volatileCache: flush, fua: flush, discard, writeZeroes, readOnly, rotational, idempotentWrites };
  return { size, blockSize, facts, ...(maxQueues === null ? {} : { maxQueues }) };
}
