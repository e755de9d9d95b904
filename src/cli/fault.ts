import { Argument } from 'commander';
import { SupervisorError } from '../errors.js';
import { ruleOfWords } from './fault-words.js';
import type { FaultRuleStatus } from '../api/status.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';
import { print, printJson } from './output.js';
import { formatTable, type Column } from './table.js';

interface FaultOptions extends RuntimeDirOption {
  readonly json?: true;
}

type Act = (name: string, words: readonly string[], options: FaultOptions) => Promise<void>;

const acts: Readonly<Record<string, Act>> = {
  add: async (name, words, options) => {
    if (words.length === 0) throw usage('add: expected a rule, as JSON or as KEY=VALUE words');
    print(await clientOf(options).addFault(name, ruleOfWords(words)));
  },
  list: async (name, words, options) => {
    if (words.length > 0) throw usage('list: expected nothing after the device');
    const rules = await clientOf(options).faults(name);
    if (options.json) printJson({ rules });
    else for (const line of formatTable(columns, rules, { headings: true, raw: false, exact: false })) print(line);
  },
  del: async (name, [id, ...more], options) => {
    if (id === undefined || more.length > 0) throw usage('del: expected the id of one rule');
    await clientOf(options).removeFault(name, id);
  },
  clear: async (name, words, options) => {
    if (words.length > 0) throw usage('clear: expected nothing after the device');
    await clientOf(options).removeFault(name, null);
  },
  log: async (name, words, options) => {
    if (words.length > 0) throw usage('log: expected nothing after the device');
    for (const hit of await clientOf(options).faultLog(name)) print(JSON.stringify(hit));
  },
};

export const faultCommand: Register = (program) => {
  program
    .command('fault')
    .description(
      'let requests of a device fail, be late, be lost or be wrong; add, list, del or clear rules, or log their hits',
    )
    .addArgument(new Argument('<action>', 'what to do').choices(Object.keys(acts)))
    .argument('<name>', 'the device')
    .argument('[rule...]', 'add: the rule, as JSON or as KEY=VALUE words. del: its id')
    .option('-J, --json', 'list: one JSON document')
    .addOption(runtimeDirOption())
    .action(async (action: string, name: string, words: readonly string[], options: FaultOptions) => {
      await acts[action]?.(name, words, options);
    });
};

/** As it was written, without what stands in other columns. */
function written(rule: FaultRuleStatus): string {
  const elsewhere = ['id', 'active', 'matches', 'hits'];
  return JSON.stringify(Object.fromEntries(Object.entries(rule).filter(([key]) => !elsewhere.includes(key))));
}

const columns: readonly Column<FaultRuleStatus>[] = [
  { name: 'ID', description: 'id', value: ({ id }) => id },
  { name: 'ACTIVE', description: 'whether what it waits for is there', value: ({ active }) => (active ? 'yes' : 'no') },
  { name: 'MATCHES', description: 'requests that it is for', value: ({ matches }) => matches, right: true },
  { name: 'HITS', description: 'requests that it changed', value: ({ hits }) => hits, right: true },
  { name: 'RULE', description: 'the rule', value: written },
];

function usage(reason: string): SupervisorError {
  return new SupervisorError(`fault ${reason}; see ublk-supervisor fault --help`, { code: 'CONFIG' });
}
