#!/usr/bin/env node
import { run } from './program.js';
import { endQuietlyOnClosedPipe } from './output.js';

endQuietlyOnClosedPipe();
await run(process.argv.slice(2));
