import { printable } from '../printable.js';

/** Ends the program quietly when whoever reads its output has had enough, as in `list | head -1`. */
export function endQuietlyOnClosedPipe(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') throw error;
      process.exit();
    });
  }
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(document: unknown): void {
  print(JSON.stringify(document, null, 2));
}

/** On stderr, each line named after the program; the lines themselves may quote what others wrote. */
export function printError(message: string): void {
  for (const line of message.split('\n')) process.stderr.write(`ublk-supervisor: ${printable(line)}\n`);
}
