import { packageRoot } from '../../package-root.js';

const OURS = [`${packageRoot}dist/src/`, `${packageRoot}dist/programs/`, 'node:'];

/** `message`, then where in its author's code the error was thrown and what had called that: a line each. */
export function withFrames(message: string, error: unknown): string {
  if (!(error instanceof Error) || error.name === 'SupervisorError') return message;
  const frames = (error.stack ?? '').split('\n').filter((line) => line.startsWith('    at '));
  const theirs = frames.filter((line) => !OURS.some((ours) => line.includes(ours)));
  return [message, ...theirs.map((line) => line.trim())].join('\n');
}
