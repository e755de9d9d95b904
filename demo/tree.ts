import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { cp, readFile, readdir } from 'node:fs/promises';
import { join, relative } from 'node:path';

/** The parts of the project that are copied: its sources, not what was installed or built. */
const PARTS = ['backends', 'demo', 'docs', 'examples', 'man', 'package-lock.json', 'src', 'test', 'vm'];

export async function copySources(project: string, target: string): Promise<void> {
  for (const part of PARTS.filter((name) => existsSync(join(project, name)))) {
    await cp(join(project, part), join(target, part), { recursive: true });
  }
}

/** SHA-256 of each file, by its path below `directory`. */
export async function checksums(directory: string): Promise<ReadonlyMap<string, string>> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const sums = new Map<string, string>();
  for (const entry of entries.filter((each) => each.isFile())) {
    const path = join(entry.parentPath, entry.name);
    sums.set(
      relative(directory, path),
      createHash('sha256')
        .update(await readFile(path))
        .digest('hex'),
    );
  }
  return sums;
}
