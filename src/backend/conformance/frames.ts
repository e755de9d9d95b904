import { packageRoot } from '../../package-root.js';

const OURS = [`${packageRoot}dist/src/`, `${packageRoot}dist/programs/`, 'node:'];

/** Where in its author's code an error was thrown, and what had called that: a line each. */
export function framesOf(error: unknown): readonly string[] {
  if (!(error instanceof Error) || error.name === 'SupervisorError') return [];
  const frames = (error.stack ?? '').split('\n').filter((line) => line.startsWith('    at '));
  return frames.filter((line) => !OURS.some((ours) => line.includes(ours))).map((line) => line.trim());
}
