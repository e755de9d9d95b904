// Preloaded into a supervisor (node --import): the first SIGPWR begins to measure how late its event loop is, the second
// writes the longest delay in milliseconds to /run/loop-delay.PID, and so on.
import { renameSync, writeFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';

const file = `/run/loop-delay.${process.pid}`;
let monitor = null;

process.on('SIGPWR', () => {
  if (monitor === null) {
    monitor = monitorEventLoopDelay({ resolution: 1 });
    monitor.enable();
    return;
  }
  monitor.disable();
  writeFileSync(`${file}.new`, String(Math.max(0, monitor.max / 1e6)));
  renameSync(`${file}.new`, file);
  monitor = null;
});
