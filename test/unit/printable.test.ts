import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import t from 'tap';
import { printable } from '../../src/printable.js';

t.test('F4 nothing drives a terminal, breaks a line or turns it around', async (t) => {
  t.equal(
    printable('\u001b[2J\u009b2J a\nb\r\0\u007f\u202e\u2028'),
    ['\\u001b[2J\\u009b2J a\\u000ab\\u000d\\u0000', '\\u007f\\u202e\\u2028'].join(''),
  );
  t.equal(printable('fine: äöü ☃ 100 % \\n'), 'fine: äöü ☃ 100 % \\n');
  t.equal(printable(printable('\u001b')), '\\u001b');
});

t.test('F4 what commands print is so, errors and JSON included', async (t) => {
  const module = fileURLToPath(new URL('../../src/cli/output.js', import.meta.url));
  const script = `
    import { print, printError, printJson } from ${JSON.stringify(module)};
    const nasty = 'a\\u001b[2J\\u009b\\nb';
    print(nasty);
    printJson({ nasty });
    printError(nasty);`;
  const { stdout, stderr } = await execa(process.execPath, ['--input-type=module', '-e', script], { nodeOptions: [] });
  const lines = stdout.split('\n');
  t.equal(lines.shift(), 'a\\u001b[2J\\u009b\\u000ab');
  t.strictSame(JSON.parse(lines.join('\n')), { nasty: 'a\u001b[2J\u009b\nb' });
  t.equal(stderr, 'ublk-supervisor: a\\u001b[2J\\u009b\nublk-supervisor: b');
  t.notMatch(stdout + stderr, /[\u0000-\u0009\u000b-\u001f\u0080-\u009f]/);
});
