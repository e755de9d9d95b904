import { copyFile, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cli, ok, root, shell } from './harness.js';

/** deploy/ublk-supervisor.service in a guest whose PID 1 is systemd, as its manual installs it. */

export const UNIT = 'ublk-supervisor.service';
export const RUNTIME_DIR = '/run/ublk-supervisor';

export const CONFIG = '/etc/ublk-supervisor/config.json';

export const systemctl = (...args: string[]): Promise<string> => ok('systemctl', args);

/** Puts the unit, what it runs and the configuration into their places; systemd has not read them yet. */
export async function installService(devices: readonly object[]): Promise<void> {
  const node = '/usr/local/bin/node';
  if (process.execPath !== node) await shell(`ln -sf ${process.execPath} ${node}`);
  await symlink(cli, '/usr/local/bin/ublk-supervisor');
  await copyFile(join(root, 'deploy', UNIT), `/etc/systemd/system/${UNIT}`);
  await mkdir('/etc/ublk-supervisor');
  await writeFile(CONFIG, JSON.stringify({ devices }));
}
