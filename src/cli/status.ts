import { formatSize } from '../units.js';
import { describeRequest } from '../api/operations.js';
import type {
  BackendErrorStatus,
  CrashStatus,
  DeviceStatus,
  ExitStatus,
  OperationStatus,
  QueueStatus,
} from '../api/status.js';
import { clientOf, runtimeDirOption, type Register, type RuntimeDirOption } from './common-options.js';
import { print, printJson } from './output.js';
import { formatTable, type Column } from './table.js';

interface StatusOptions extends RuntimeDirOption {
  readonly json?: true;
}

export const statusCommand: Register = (program) => {
  program
    .command('status')
    .description('show the supervisor, its devices and their queues')
    .option('-J, --json', 'one JSON document, sizes in bytes')
    .addOption(runtimeDirOption())
    .action(async (options: StatusOptions) => {
      const status = await clientOf(options).status();
      if (options.json) {
        printJson(status);
        return;
      }
      const { pid, version, kernel } = status.supervisor;
      print(`ublk-supervisor ${version}, pid ${pid}, Linux ${kernel}`);
      for (const device of status.devices) for (const line of describeDevice(device)) print(line);
    });
};

function describeDevice(device: DeviceStatus): string[] {
  const { name, path, state, reason, size, backend, blockSize, dataPath, generation, recoveries, lastPauseMs } = device;
  const pause = lastPauseMs === null ? '' : `, the last with a pause of ${Math.round(lastPauseMs)} ms`;
  return [
    '',
    `${name}: ${state}${reason === null ? '' : `, ${reason}`}`,
    `  device    ${path ?? '-'}, ${formatSize(size)}, blocks of ${blockSize}`,
    `  backend   ${backend}, data path ${dataPath}`,
    ...device.choices.map(({ what, value, why }) => `  chosen    ${what} ${String(value)}: ${why}`),
    `  history   generation ${generation}, recoveries: ${recoveries}${pause}`,
    ...(device.lastExit === null ? [] : [`  last exit ${describeExit(device.lastExit)}`]),
    ...(device.lastCrash === null ? [] : [`  last crash ${describeCrash(device.lastCrash)}`]),
    ...(device.lastBackendError === null ? [] : [`  last error ${describeError(device.lastBackendError)}`]),
    ...(device.faults ?? []).map(({ id, hits }) => `  fault     ${id}, hits: ${hits}`),
    ...device.quarantine.map((request) => `  refused   ${describeRequest(request)}, after ${request.crashes} crashes`),
    ...formatTable(queueColumns, device.queues, { headings: true, raw: false, exact: false }).map(
      (line) => `  ${line}`,
    ),
  ];
}

function describeExit({ queue, pid, code, signal, reason, at }: ExitStatus): string {
  const how = signal === null ? `exited with code ${String(code)}` : `killed by ${signal}`;
  return `${at}, queue ${queue}, pid ${pid}: ${how}${reason === null ? '' : `, ${reason}`}`;
}

function describeError({ queue, request, message, at }: BackendErrorStatus): string {
  return `${at}, queue ${queue}, a ${describeRequest(request)}: ${message}`;
}

function describeCrash({ generation, cause, inflight, requests, pauseMs, file }: CrashStatus): string {
  const [oldest] = requests;
  const waited =
    oldest === undefined ? '' : `, the oldest ${describeRequest(oldest)} for ${Math.round(oldest.ageMs)} ms`;
  const pause = pauseMs === null ? '' : `, pause ${Math.round(pauseMs)} ms`;
  const report = file === null ? '' : `, ${file}`;
  return `generation ${generation}: ${cause}, requests in it: ${inflight}${waited}${pause}${report}`;
}

const queueColumns: readonly Column<QueueStatus>[] = [
  { name: 'QUEUE', description: 'index', value: ({ index }) => index, right: true },
  { name: 'PID', description: 'process', value: ({ pid }) => pid, right: true },
  { name: 'INFLIGHT', description: 'requests in the process', value: ({ inflight }) => inflight, right: true },
  ...operationColumns('READ', ({ read }) => read),
  ...operationColumns('WRITE', ({ write }) => write),
  { name: 'FLUSHES', description: 'flushes answered', value: ({ flush }) => flush.count, right: true },
  { name: 'ERRORS', description: 'requests answered with an error', value: countErrors, right: true },
];

function operationColumns(name: string, of: (queue: QueueStatus) => OperationStatus): readonly Column<QueueStatus>[] {
  return [
    { name: `${name}S`, description: 'requests answered', value: (queue) => of(queue).count, right: true },
    {
      name: `${name}-BYTES`,
      description: 'bytes moved',
      value: (queue) => of(queue).bytes,
      text: (queue) => formatSize(of(queue).bytes),
      right: true,
    },
    { name: `${name}-P99-US`, description: 'microseconds', value: (queue) => of(queue).p99us, right: true },
  ];
}

function countErrors({ read, write, flush, discard, writeZeroes }: QueueStatus): number {
  return [read, write, flush, discard, writeZeroes].reduce((sum, { errors }) => sum + errors, 0);
}
