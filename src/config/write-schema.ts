import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { configJsonSchema } from './schema.js';

/** A build step: writes the JSON Schema that the package ships beside the example. */
const target = fileURLToPath(new URL('../../../examples/config.schema.json', import.meta.url));
writeFileSync(target, `${JSON.stringify(configJsonSchema(), null, 2)}\n`);
