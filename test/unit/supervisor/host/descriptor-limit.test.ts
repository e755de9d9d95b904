import { execFileSync } from 'node:child_process';
import t from 'tap';
import { parseDevice } from '../../../../src/config/schema.js';
import { descriptorShortage } from '../../../../src/supervisor/host/descriptor-limit.js';

const device = (index: number) => parseDevice({ name: `d${index}`, queues: 2, backend: { type: 'null', size: 4096 } });
const devices = Array.from({ length: 500 }, (_, index) => device(index));
const limits = (open: string): string =>
  `Limit                     Soft Limit           Hard Limit           Units     \n` +
  `Max processes             95000                95000                processes \n` +
  `Max open files            ${open}                ${open}                files     \n`;

t.test('a limit that is too low for the devices is said in one line, with both numbers', (t) => {
  const said =
    '500 devices need 3100 open files, and the limit is 3099; raise it (ulimit -n; LimitNOFILE= of a systemd service)';
  t.equal(descriptorShortage(devices, limits('3099')), said);
  t.equal(descriptorShortage(devices, limits('3100')), null);
  t.equal(descriptorShortage(devices, limits('unlimited')), null);
  t.equal(descriptorShortage([]), null, 'of this process');
  t.end();
});

t.test('node raises the soft limit to the hard one itself', (t) => {
  const program = `process.stdout.write(require('fs').readFileSync('/proc/self/limits', 'utf8'))`;
  const script = 'ulimit -Sn 256; ulimit -Hn 512; exec "$0" -e "$1"';
  const text = execFileSync('sh', ['-c', script, process.execPath, program], { encoding: 'utf8' });
  t.match(text, /^Max open files +512 +512 /m);
  t.end();
});
