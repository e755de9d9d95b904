import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { SAME_USER } from '../../../src/native/addon/accounts.js';
import {
  CorruptKind,
  DelayKind,
  FaultAction,
  LONGEST_FAULT_TEXT,
  MOST_BAD_BLOCKS,
  MOST_FAULT_RULES,
  MOST_FAULT_SAMPLES,
  TornEnd,
} from '../../../src/native/addon/fault-area.js';
import { MOST_MARKED, QueuePhase } from '../../../src/native/addon/shared-pages.js';
import { controlAction, controlCommand, dataPathNumber } from '../../../src/native/addon/zygote-channel.js';
import { Operation } from '../../../src/native/request.js';

/** Numbers that both the TypeScript and the C++ of src/native write down are the same. */

const common = fileURLToPath(new URL('../../../../src/native/common/', import.meta.url));
const header = (name: string): string => readFileSync(join(common, name), 'utf8').replace(/\/\/.*/g, '');

function bodyOf(file: string, name: string): string {
  const [, body] = new RegExp(`enum class ${name} : \\w+ \\{([^}]*)\\}`).exec(header(file)) ?? [];
  if (body === undefined) throw new Error(`${file} has no enum class ${name}`);
  return body;
}

/** The members of an `enum class`, by name; one without a number follows the one before. */
function members(file: string, name: string): Record<string, number> {
  const found: Record<string, number> = {};
  let next = 0;
  for (const [, member = '', value] of bodyOf(file, name).matchAll(/(\w+)(?: = (\w+))?,?/g)) {
    next = value === undefined ? next : Number(value);
    found[member] = next;
    next += 1;
  }
  return found;
}

const camelCase = (name: string): string => name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());

t.strictSame(members('shared_page.hpp', 'Phase'), { ...QueuePhase });
t.strictSame(members('ublk_uapi.hpp', 'Operation'), { ...Operation });
t.strictSame(members('protocol.hpp', 'ControlAction'), { ...controlAction });
t.strictSame(
  members('backend.hpp', 'DataPath'),
  Object.fromEntries(Object.entries(dataPathNumber).map(([name, number]) => [camelCase(name), number])),
);
t.match(header('shared_page.hpp'), `kMaxMarked = ${MOST_MARKED};`);
const noSlot = { none: 0 };
t.strictSame(members('fault_rules.hpp', 'FaultAction'), { ...noSlot, ...FaultAction });
for (const [name, numbers] of Object.entries({ DelayKind, TornEnd, CorruptKind })) {
  const ours = Object.entries(numbers).map(([key, number]) => [key, Number(number)]);
  t.strictSame(members('fault_rules.hpp', name), Object.fromEntries(ours));
}
for (const [name, number] of Object.entries({
  kMaxFaultRules: MOST_FAULT_RULES,
  kMaxFaultSamples: MOST_FAULT_SAMPLES,
  kMaxBadBlocks: MOST_BAD_BLOCKS,
  kMaxFaultText: LONGEST_FAULT_TEXT + 1,
})) {
  t.match(header('fault_rules.hpp'), `${name} = ${number};`);
}
t.match(header('user.hpp'), 'kSameUser = UINT32_MAX;');
t.equal(SAME_USER, 0xffffffff);

// _IOC(2) of linux/ioctl.h: direction, size of the argument, the driver's letter, and the command's number.
const directions: Record<string, number> = { kRead: 2, kReadWrite: 3 };
const opcodes = Array.from(bodyOf('ublk_uapi.hpp', 'Control').matchAll(/controlOpcode\((\w+), (\w+)\)/g), (found) => {
  const [, direction = '', number] = found;
  return (directions[direction] ?? 0) * 2 ** 30 + 32 * 2 ** 16 + 'u'.charCodeAt(0) * 2 ** 8 + Number(number);
});
t.strictSame(
  Object.entries(controlCommand).filter(([, code]) => !opcodes.includes(code)),
  [],
);
