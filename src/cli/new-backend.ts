import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SupervisorError, errnoOf, reasonOf } from '../errors.js';
import { packageRoot } from '../package-root.js';
import type { Register } from './common-options.js';
import { print } from './output.js';

const SIZE = 2 ** 26;

export const newBackendCommand: Register = (program) => {
  program
    .command('new-backend')
    .description('write the beginnings of a backend, with a test and a configuration')
    .argument('<name>', 'what to call it')
    .option('--directory <dir>', 'what directory to make for it (default: its name)')
    .action(async (name: string, { directory = name }: { readonly directory?: string }) => {
      const { deviceName } = await import('../config/schema.js');
      const { validate } = await import('../problems.js');
      const { stripsTypes } = await import('../js-backend/load.js');
      validate(deviceName, name, 'name');
      try {
        // It must not be there yet, so nothing can be overwritten.
        await mkdir(directory);
        for (const [file, text] of Object.entries(skeleton(name, stripsTypes ? 'ts' : 'js'))) {
          await writeFile(join(directory, file), text);
          print(join(directory, file));
        }
      } catch (error) {
        throw new SupervisorError(
          `making directory ${directory} failed: ${reasonOf(error)}; choose another one with --directory`,
          { code: 'NEW_BACKEND', errno: errnoOf(error), cause: error },
        );
      }
      print(`next: cd ${directory} && npm install && npm test`);
      if (!stripsTypes) {
        print(`it is JavaScript, as Node ${process.version} does not run TypeScript; Node 22.18 and later do`);
      }
    });
};

function skeleton(name: string, language: 'ts' | 'js'): Readonly<Record<string, string>> {
  const [typeImport, type] = language === 'ts' ? [', type BackendInstance', ': Promise<BackendInstance>'] : ['', ''];
  return {
    [`${name}.${language}`]: `import { defineBackend${typeImport} } from 'ublk-supervisor';
import { z } from 'zod';

/** The rules are in ublk-supervisor-backend(7). */
export default defineBackend({
  name: '${name}',
  options: z.strictObject({
    /** Bytes. */
    size: z.int().multipleOf(4096),
  }),
  async open({ size }, context)${type} {
    // Each queue's process has an instance of its own, and another one after a crash: what they share is not in
    // variables. Put your store in the place of this memory.
    const disk = context.sharedMemory('disk', size);
    const flush = async () => {
      // All writes that were answered are on stable storage when this is.
    };
    return {
      size,
      async read(buffer, offset) {
        return disk.copy(buffer, 0, offset, offset + buffer.length);
      },
      // Without write the device is read-only.
      async write(buffer, offset, { fua }) {
        const written = buffer.copy(disk, offset);
        if (fua) await flush();
        return written;
      },
      flush,
      async discard(offset, length) {
        disk.fill(0, offset, offset + length);
      },
      async writeZeroes(offset, length) {
        disk.fill(0, offset, offset + length);
      },
      async close() {
        // Nothing is under way any more.
      },
    };
  },
});
`,
    [`${name}.test.${language}`]: `import { test } from 'node:test';
import { testBackend } from 'ublk-supervisor/testing';

test('${name} keeps the rules of a backend', async () => {
  await testBackend(new URL('${name}.${language}', import.meta.url), { size: ${SIZE} });
});
`,
    'config.json': json({ devices: [{ name, queues: 2, backend: { type: `./${name}.${language}`, size: SIZE } }] }),
    'package.json': json({
      name,
      private: true,
      type: 'module',
      scripts: {
        // By name: a Node that does not run TypeScript would else find nothing to test, and say that all is well.
        test: `node --test ${name}.test.${language}`,
        start: 'ublk-supervisor start config.json',
      },
      // What runs here, and not what the registry has by that name.
      dependencies: { 'ublk-supervisor': `file:${packageRoot}`, zod: '^4.6.7' },
    }),
    // npm copies it. It would else link to it, and install what it needs into it.
    '.npmrc': 'install-links=true\n',
  };
}

function json(document: object): string {
  return `${JSON.stringify(document, null, 2)}\n`;
}
