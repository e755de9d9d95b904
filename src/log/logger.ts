import { fstatSync } from 'node:fs';
import { isatty } from 'node:tty';
import { pino, type Level, type Logger } from 'pino';
import { SupervisorError, messageOf } from '../errors.js';
import { printable } from '../printable.js';
import { LogOutput } from './output.js';

export type { Level, Logger };

const STDERR = 2;

/** syslog(3) priorities, as journald reads them from a line's `<N>` prefix. */
const PRIORITIES: Readonly<Record<Level, number>> = { trace: 7, debug: 7, info: 6, warn: 4, error: 3, fatal: 2 };

type Entry = Readonly<Record<string, unknown>> & {
  readonly level: Level;
  readonly time: string;
  readonly msg?: string;
};

/**
 * The daemon's log on stderr: JSON lines, short lines for a person on a terminal, `<N>message key=value` for journald.
 * Written synchronously, so that the last line before a crash is not lost, but never waiting for its reader.
 */
export function createLogger(level: Level): Logger {
  const stderr = new LogOutput(STDERR, (lines) =>
    logger.warn({ lines }, 'lines of this log were lost: they were not read in time'),
  );
  const format = formatFor(STDERR);
  const logger = pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: describe },
    },
    {
      write: (line: string) => stderr.write(`${format(line.trimEnd())}\n`),
    },
  );
  return logger;
}

/** How lines look on file descriptor `fd`. */
function formatFor(fd: number): (line: string) => string {
  if (isJournal(fd)) return journalLine;
  if (isatty(fd)) return terminalLine;
  // pino escapes C0 only; the others can only stand inside JSON strings, where the escape means the same character.
  return printable;
}

/** As systemd.exec(5) asks: JOURNAL_STREAM is inherited, so it counts only for the very file that it names. */
function isJournal(fd: number): boolean {
  const stream = process.env.JOURNAL_STREAM;
  if (stream === undefined) return false;
  const { dev, ino } = fstatSync(fd, { bigint: true });
  return stream === `${String(dev)}:${String(ino)}`;
}

/** journald keeps the time itself. */
function journalLine(line: string): string {
  const { level, msg = '', ...fields } = JSON.parse(line) as Entry;
  return `<${PRIORITIES[level]}>${printable(msg)}${keyValues(fields)}`;
}

function terminalLine(line: string): string {
  const { level, time, msg = '', ...fields } = JSON.parse(line) as Entry;
  return `${time.slice(11, 23)} ${level.padEnd(5)} ${printable(msg)}${keyValues(fields)}`;
}

function keyValues(fields: Readonly<Record<string, unknown>>): string {
  return Object.entries(fields)
    .filter(([key]) => key !== 'time')
    .map(([key, value]) => {
      const text = typeof value === 'string' ? value : JSON.stringify(value);
      return ` ${printable(key)}=${printable(/^[^\s"=]+$/.test(text) ? text : JSON.stringify(text))}`;
    })
    .join('');
}

/** Errors that we made say everything in one line; a stack is for unexpected ones. */
function describe(error: unknown): unknown {
  if (error instanceof SupervisorError) {
    const { code, errno, device, queue, message } = error;
    return { code, errno, device, queue, message };
  }
  return error instanceof Error ? { message: error.message, stack: error.stack } : { message: messageOf(error) };
}
