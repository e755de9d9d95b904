import { statSync } from 'node:fs';
import { messageOf } from '../errors.js';
import type { Log } from '../log/log.js';

const INTERVAL_MS = 250;

interface Watchable {
  modules(): ReadonlyMap<string, string>;
  restart(name: string): Promise<unknown>;
}

interface Seen {
  /** The state of the module's file when the device last got its code. */
  served: string;
  latest: string;
}

/**
 * Hands each device with a backend in JavaScript over to its module's code when that changed: once it looks the same
 * twice, so that an editor has finished. Looks instead of being told, which works for a file that is replaced by a
 * rename, on every file system, and for devices that come and go. Returns how to stop.
 */
export function watchModules(supervisor: Watchable, log: Log): () => void {
  const seen = new Map<string, Seen>();
  let busy = false;
  const look = async (): Promise<void> => {
    const modules = supervisor.modules();
    for (const name of seen.keys()) if (!modules.has(name)) seen.delete(name);
    for (const [name, path] of modules) {
      const now = `${path} ${versionOf(path)}`;
      const before = seen.get(name);
      if (before === undefined) seen.set(name, { served: now, latest: now });
      else if (now !== before.latest) before.latest = now;
      else if (now !== before.served) {
        before.served = now;
        await handOver(name, path);
      }
    }
  };
  const handOver = async (device: string, path: string): Promise<void> => {
    try {
      await supervisor.restart(device);
      log.info({ device }, `device ${device} serves what ${path} is now`);
    } catch (error) {
      log.error({ device }, `${messageOf(error)}; device ${device} goes on with the code before`);
    }
  };
  const timer = setInterval(() => {
    if (busy) return;
    busy = true;
    void look().finally(() => {
      busy = false;
    });
  }, INTERVAL_MS);
  return () => clearInterval(timer);
}

/** Different after every save; a file that is being replaced may be missing for a moment. */
function versionOf(path: string): string {
  const found = statSync(path, { throwIfNoEntry: false });
  return found === undefined ? 'missing' : `${found.ino} ${found.size} ${found.mtimeMs}`;
}
