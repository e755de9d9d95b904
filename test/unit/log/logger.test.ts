import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import t from 'tap';

const module = fileURLToPath(new URL('../../../src/log/logger.js', import.meta.url));
const errors = fileURLToPath(new URL('../../../src/errors.js', import.meta.url));
const script = `
  import { createLogger } from ${JSON.stringify(module)};
  import { SupervisorError } from ${JSON.stringify(errors)};
  const log = createLogger('info');
  log.debug('not this');
  log.warn({ device: 'a\\u001b[2J\\u009b', size: 4096 }, 'one\\ntwo');
  log.error({ err: new SupervisorError('it failed', { code: 'EIO', errno: 5 }) }, 'no');
`;
const env = { PATH: '/usr/bin:/bin' };

async function lines(shell: string): Promise<string[]> {
  const { stderr } = await execa('bash', ['--norc', '-c', shell, 'bash', process.execPath, script], {
    extendEnv: false,
    env,
  });
  return stderr.split('\n');
}

t.test('JSON by default, with nothing in it that drives a terminal', async (t) => {
  const [warning = '', error = '', ...rest] = await lines('"$1" --input-type=module -e "$2"');
  t.match(JSON.parse(warning), { level: 'warn', device: 'a\u001b[2J\u009b', size: 4096, msg: 'one\ntwo', time: /Z$/ });
  t.notMatch(warning, /[\u0000-\u001f\u0080-\u009f]/);
  t.match(JSON.parse(error), { err: { code: 'EIO', errno: 5, message: 'it failed' } });
  t.notOk('stack' in (JSON.parse(error) as { err: object }).err, 'our own errors need no stack');
  t.strictSame(rest, []);
});

t.test('journald gets a priority and key=value, if the stream is really its own', async (t) => {
  const journal = 'export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec "$1" --input-type=module -e "$2"';
  const [warning, error] = await lines(journal);
  t.equal(warning, '<4>one\\u000atwo device=a\\u001b[2J\\u009b size=4096');
  t.match(error, /^<3>no err="\{\\"code\\":\\"EIO\\"/);
  const [inherited] = await lines('export JOURNAL_STREAM=1:1; exec "$1" --input-type=module -e "$2"');
  t.match(inherited, /^\{/);
});

t.test('a log reader that does not read keeps nobody waiting, and is told what it missed', async (t) => {
  const loop = `${script}
    for (let i = 0; i < 2_000; i++) log.info({ i }, 'more'.repeat(1000));
    process.stdout.write('went on');
    setTimeout(() => {
      log.info('the last one');
    }, 2000);`;
  const run = '"$1" --input-type=module -e "$2"';
  // The reader begins only when the writer has said that it is through; a FIFO is a pipe of both kinds of readers.
  const shell = `d=$(mktemp -d); mkfifo $d/log $d/out
    ${run} 2> $d/log > $d/out & exec 5< $d/log 4< $d/out
    read -rN 7 -u 4 said; cat <&5 > $d/read; tail -n 3 $d/read >&2; echo $said; rm -r $d`;
  const { stdout, stderr } = await execa('bash', ['--norc', '-c', shell, 'bash', process.execPath, loop], {
    extendEnv: false,
    env,
  });
  t.equal(stdout, 'went on');
  t.match(stderr, /"lines":[0-9]+,"msg":"lines of this log were lost/);
  t.match(stderr, /"msg":"the last one"/);
});

t.test('a log reader that went away or a full disk does not end the process', async (t) => {
  const loop = `${script}
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 50_000; i++) log.info({ i }, 'more'.repeat(1000));
    process.stdout.write(process.memoryUsage().rss - before < 2 ** 26 ? 'survived' : 'grew');`;
  const run = '"$1" --input-type=module -e "$2"';
  for (const shell of [`{ ${run} 2>&1 >&3 | true; } 3>&1`, `${run} 2>/dev/full`]) {
    const { stdout } = await execa('bash', ['--norc', '-c', shell, 'bash', process.execPath, loop], {
      extendEnv: false,
      env,
    });
    t.equal(stdout, 'survived', shell);
  }
});
