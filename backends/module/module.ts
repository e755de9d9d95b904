import { chown, mkdir, readdir, rmdir, unlink } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import * as z from 'zod';
import { errnoOf } from '../../src/errors.js';
import type { OpenedMessage } from '../../src/queue-proc/message-schema.js';
import type { Backend, Inheritance } from '../interface.js';
import { SHARED_MEMORY_DIRECTORY, ensureSharedMemoryDirectory } from '../shared-memory.js';
import { probe } from './probe.js';
import { trustedPath } from './trusted.js';

const { ENOENT } = constants.errno;
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

/** The directory of a device's shared memory. */
export function sharedMemoryOf(device: string): string {
  return join(SHARED_MEMORY_DIRECTORY, `${device}.shared`);
}

/** Takes the directory back first: then its user can no longer put links in the way of what root removes. */
async function removeSharedMemory(directory: string): Promise<void> {
  try {
    await chown(directory, process.geteuid?.() ?? 0, process.getegid?.() ?? 0);
  } catch (error) {
    if (errnoOf(error) === ENOENT) return;
    throw error;
  }
  for (const name of await readdir(directory)) await unlink(join(directory, name));
  await rmdir(directory);
}

/** A backend of the user's, in JavaScript: one instance in each queue process, one more in a probe beforehand. */
export const moduleBackend: Backend<z.infer<typeof moduleOptions>> = {
  name: 'module',
  options: moduleOptions,
  dataPaths,
  async open({ path, options, directory }, { device, user, inherited }) {
    const module = await trustedPath(path);
    await ensureSharedMemoryDirectory();
    const sharedMemory = sharedMemoryOf(device);
    const created = (await mkdir(sharedMemory, { recursive: true, mode: 0o700 })) !== undefined;
    const owner = user ?? { uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 };
    await chown(sharedMemory, owner.uid, owner.gid);
    const remove = (): Promise<void> => removeSharedMemory(sharedMemory);
    try {
      // A device that exists goes on, even while its author is in the middle of changing the module.
      const load = { device, module, options, directory, sharedMemory };
      const announced = inherited?.announced ?? announcedBy(await probe(load, user));
      return {
        size: announced.size,
        ...(announced.blockSize === null ? {} : { blockSize: announced.blockSize }),
        facts: announced.facts,
        ...(announced.maxQueues === undefined ? {} : { maxQueues: announced.maxQueues }),
        module: { path: module, options, directory, sharedMemory },
        files: [],
        created,
        dataPaths,
        close: () => Promise.resolve(),
        remove,
      };
    } catch (error) {
      if (created) await remove();
      throw error;
    }
  },
};

function announcedBy(opened: OpenedMessage): NonNullable<Inheritance['announced']> {
  const { size, blockSize, maxQueues, flush, discard, writeZeroes, readOnly, rotational, idempotentWrites } = opened;
  const facts = { volatileCache: flush, fua: flush, discard, writeZeroes, readOnly, rotational, idempotentWrites };
  return { size, blockSize, facts, ...(maxQueues === null ? {} : { maxQueues }) };
}
