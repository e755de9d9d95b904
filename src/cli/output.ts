import { printable } from '../printable.js';

/** Ends the program quietly when the reader of its output has gone, as in `list | head -1`. */
export function endQuietlyOnClosedPipe(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') throw error;
      process.exit();
    });
  }
}

/** One line; what it quotes of others can neither drive the terminal nor make a second one. */
export function print(line: string): void {
  process.stdout.write(`${printable(line)}\n`);
}

/** A line that begins with a coloured word of ours. */
export function printColoured(word: string, rest: string): void {
  process.stdout.write(`${word}${printable(rest)}\n`);
}

export function printJson(document: unknown): void {
  // Controls that JSON.stringify lets pass stand in strings only, where the escapes mean the same.
  for (const line of JSON.stringify(document, null, 2).split('\n')) print(line);
}

/** On stderr, each line named after the program; the lines themselves may quote what others wrote. */
export function printError(message: string): void {
  for (const line of message.split('\n')) process.stderr.write(`ublk-supervisor: ${printable(line)}\n`);
}
