'use strict';

// Serves the devices of /etc/ublk-supervisor/config.json under pm2, as root: pm2 start ecosystem.config.cjs
// ublk-supervisor(8), PM2, says what each of these is for.
module.exports = {
  apps: [
    {
      name: 'ublk-supervisor',
      script: `${__dirname}/../dist/programs/ublk-supervisor.js`,
      args: ['start', '/etc/ublk-supervisor/config.json'],
      exec_mode: 'fork',
      instances: 1,
      // Ready is when every device is live or has failed. After listen_timeout pm2 takes it for ready without a word, and a
      // start may have to read a large archive through.
      wait_ready: true,
      listen_timeout: 600000,
      // SIGINT stops the devices; pm2's 1.6 s are not enough to write dirty pages back.
      kill_timeout: 30000,
      // pm2 would send SIGINT and SIGKILL to the processes that serve, too, before the supervisor could stop a device.
      treekill: false,
      // What a restart does not mend: usage, no ublk, permissions, configuration. Not 0, which is what pm2 takes the end by
      // a signal for.
      stop_exit_codes: [64, 69, 77, 78],
      exp_backoff_restart_delay: 100,
      vizion: false,
    },
  ],
};
