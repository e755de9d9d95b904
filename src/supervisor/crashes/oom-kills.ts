import { readFileSync } from 'node:fs';

let file: string | null | undefined;

/** How often the kernel's OOM killer has struck in this process' memory cgroup; null where it does not say (cgroup v1). */
export function oomKills(): number | null {
  if (file === undefined) file = eventsFile();
  if (file === null) return null;
  const count = /^oom_kill ([0-9]+)$/m.exec(read(file))?.[1];
  return count === undefined ? null : Number(count);
}

/** The root of the hierarchy has none. */
function eventsFile(): string | null {
  const cgroup = /^0::(.*)$/m.exec(read('/proc/self/cgroup'))?.[1];
  const path = cgroup === undefined ? null : `/sys/fs/cgroup${cgroup}/memory.events`;
  return path !== null && read(path) !== '' ? path : null;
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
