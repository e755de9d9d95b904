import { readFileSync } from 'node:fs';
import { packageRoot } from './package-root.js';

interface Package {
  readonly version: string;
}

const text = readFileSync(`${packageRoot}package.json`, 'utf8');

export const { version } = JSON.parse(text) as Package;
