import { mkdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { waitFor } from './harness.js';

const ROOT = '/sys/fs/cgroup';

/** A control group of the guest, to be short of something in. */
export class Cgroup {
  readonly path: string;

  private constructor(name: string) {
    this.path = join(ROOT, name);
  }

  /** `settings`: by file, such as `memory.max`. */
  static async make(name: string, settings: Readonly<Record<string, string>> = {}): Promise<Cgroup> {
    await writeFile(join(ROOT, 'cgroup.subtree_control'), '+memory +pids');
    const group = new Cgroup(name);
    await mkdir(group.path);
    for (const [file, value] of Object.entries(settings)) await group.set(file, value);
    return group;
  }

  async set(file: string, value: string): Promise<void> {
    await writeFile(join(this.path, file), value);
  }

  /** The process and what it forks from now on. */
  add(pid: number): Promise<void> {
    return this.set('cgroup.procs', String(pid));
  }

  /** A counter of a file with lines such as `oom_kill 1`. */
  async counter(file: string, key: string): Promise<number> {
    const text = await readFile(join(this.path, file), 'utf8');
    return Number(new RegExp(`^${key} ([0-9]+)$`, 'm').exec(text)?.[1]);
  }

  /** Moves what is left to the root group. */
  async remove(): Promise<void> {
    await this.set('cgroup.freeze', '0');
    const pids = (await readFile(join(this.path, 'cgroup.procs'), 'utf8')).split('\n').filter((pid) => pid !== '');
    for (const pid of pids) await writeFile(join(ROOT, 'cgroup.procs'), pid);
    await waitFor('the group being empty', async () => (await this.counter('cgroup.events', 'populated')) === 0);
    await rmdir(this.path);
  }
}
