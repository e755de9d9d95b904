// run: full
// kernels: newest
// needs: zip-writers
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { zipArchive } from '../unit/backends/zip/zip-archive.js';
import { RunningSupervisor, assertNothingLeft, ok } from './harness.js';

/** What the programs that people have write: scripts/zip-writers has each of them put the same file into an archive. */

const made = fileURLToPath(new URL('../../../build/zip-writers/', import.meta.url));
const data = join(made, 'data');

const GZIP_NAME = 8;
const GZIP_HEADER_BYTES = 10;
const GZIP_TRAILER_BYTES = 8;

interface Written {
  readonly archive: string;
  /** A file with what it has to serve. */
  readonly content: string;
}

/** The deflate stream of a gzip file in an archive: some programs write no other files. */
async function archiveOf(gzip: string): Promise<Written> {
  const file = await readFile(gzip);
  const named = ((file[3] ?? 0) & GZIP_NAME) !== 0;
  const start = named ? file.indexOf(0, GZIP_HEADER_BYTES) + 1 : GZIP_HEADER_BYTES;
  const compressed = file.subarray(start, -GZIP_TRAILER_BYTES);
  const written = { archive: '/tmp/stream.zip', content: '/tmp/stream' };
  const content = gunzipSync(file);
  await writeFile(written.content, content);
  await writeFile(written.archive, zipArchive([{ name: 'data', data: content, compressed }]));
  return written;
}

test('archives of other programs', { timeout: 1_000_000 }, async (t) => {
  const served = await RunningSupervisor.start([]);
  const archives = join(made, 'archives');
  for (const name of (await readdir(archives)).sort()) {
    await t.test(name, async () => {
      const file = join(archives, name);
      const { archive: path, content } = name.endsWith('.gz')
        ? await archiveOf(file)
        : { archive: file, content: data };
      const device = await served.add({ name: 'archive', backend: { type: 'zip', path } });
      await ok('cmp', ['-n', String(device.size), device.path ?? '', content]);
      await served.remove('archive');
    });
  }
  await served.terminate();
  await assertNothingLeft(served.runtimeDir);
});
