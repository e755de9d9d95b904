import { constants } from 'node:fs';
import { lstat, mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../errors.js';
import type { Log } from '../../log/log.js';
import { isOurDirectory } from '../../trusted.js';

const MOST_FILES = 100;
/** Reports that wait for a file system that hangs; more are dropped. */
const MOST_WAITING = 100;
const REPORT = /^[0-9]{8}T[0-9]{9}Z-.+\.json$/;

/**
 * Crash reports as JSON files in `crashes` of the state directory, the latest 100. Written in the background, one after the
 * other, so that a file system that hangs, or is on a device of ours that is being recovered, costs one thread of libuv's
 * and nobody waits for it.
 */
export class CrashFiles {
  readonly #stateDir: string;
  readonly #directory: string;
  readonly #log: Log;
  readonly #most: number;
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #failing = false;

  constructor(stateDir: string, log: Log, most = MOST_FILES) {
    this.#stateDir = stateDir;
    this.#directory = join(stateDir, 'crashes');
    this.#log = log;
    this.#most = most;
  }

  /** The path for the report of a crash at `at` (ISO 8601) in this device's generation. Paths sort by time. */
  pathOf({ device, generation, at }: { device: string; generation: number; at: string }): string {
    const time = at.replace(/[-:.]/g, '');
    return join(this.#directory, `${time}-${device}-${generation}.json`);
  }

  /** Writes a report, or writes it anew. Resolves with whether that worked; the first of a series of failures is logged. */
  save(path: string, report: object): Promise<boolean> {
    if (this.#waiting >= MOST_WAITING) return Promise.resolve(false);
    const text = `${JSON.stringify(report, null, 2)}\n`;
    this.#waiting += 1;
    const saved = this.#last.then(async () => {
      try {
        await this.#write(path, text);
        this.#failing = false;
        return true;
      } catch (error) {
        if (!this.#failing)
          this.#log.warn({}, `writing ${path} failed: ${messageOf(error)}; crash reports are in the log`);
        this.#failing = true;
        return false;
      } finally {
        this.#waiting -= 1;
      }
    });
    this.#last = saved;
    return saved;
  }

  async #write(path: string, text: string): Promise<void> {
    for (const directory of [this.#stateDir, this.#directory]) await makePrivate(directory);
    // In one piece or not at all, also for who reads meanwhile. One of a supervisor that died has the same name or is ours.
    const temporary = join(this.#directory, `.${process.pid}.tmp`);
    await rm(temporary, { force: true });
    const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
    try {
      await using file = await open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o640);
      await file.chmod(0o640);
      await file.writeFile(text);
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
    await rename(temporary, path);
    const reports = (await readdir(this.#directory)).filter((name) => REPORT.test(name)).sort();
    for (const name of reports.slice(0, Math.max(0, reports.length - this.#most))) {
      await rm(join(this.#directory, name), { force: true });
    }
  }
}

/** Throws unless only this user can put anything, such as a link, into the directory. */
async function makePrivate(directory: string): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o750 });
  const found = await lstat(directory);
  if (!isOurDirectory(found)) {
    throw new Error(`${directory} is not a directory that only we can write to`);
  }
}
