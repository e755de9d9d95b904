import type { Register } from './common-options.js';
import { printJson } from './output.js';

export const schemaCommand: Register = (program) => {
  program
    .command('schema')
    .description("print the configuration's JSON Schema")
    .action(async () => {
      const { configJsonSchema } = await import('../config/schema.js');
      printJson(configJsonSchema());
    });
};
