import { open, readFile, type FileHandle } from 'node:fs/promises';

/** Up to 6.14 this is how long a dead server with every command in flight stays unnoticed; the default is 30 s. */
const OLD_KERNEL_IO_TIMEOUT_MS = 1_000;

/**
 * Lets an old kernel notice soon that a device's server died: a setting that stays for the device's life. The kernel makes it
 * when every request under way is answered, which may take a recovery: so no recovery waits for that, and it is made once.
 */
export async function noticeDeathsSoon(id: number): Promise<void> {
  const path = `/sys/block/ublkb${id}/queue/io_timeout`;
  if (Number(await readFile(path, 'utf8')) === OLD_KERNEL_IO_TIMEOUT_MS) return;
  const file = await open(path, 'w');
  // What can go wrong now is that the device goes.
  void writeAndClose(file, String(OLD_KERNEL_IO_TIMEOUT_MS)).catch(() => undefined);
}

async function writeAndClose(file: FileHandle, text: string): Promise<void> {
  await using opened = file;
  await opened.writeFile(text);
}
