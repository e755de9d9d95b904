import type { ServeOptions, Serving } from './serve.js';

export { defineBackend } from './backend/define.js';
export type { BackendContext, BackendDefinition, BackendInstance, BackendLog } from './backend/define.js';
export { SupervisorError } from './errors.js';
export type { ServeOptions, ServedDevice, Serving, StopOptions } from './serve.js';
export type { Log } from './supervisor/device-log.js';
export type { DeviceStatus, ExitStatus, OperationStatus, QueueStatus, Status } from './supervisor/status.js';

/**
 * Serves devices from inside this program; see ./serve.ts, which is loaded only now: a backend's module imports this
 * package for `defineBackend` alone, and its queue processes need not wait for a supervisor that they do not use.
 */
export async function serve<const Name extends string>(options: ServeOptions<Name>): Promise<Serving<Name>> {
  return (await import('./serve.js')).serve(options);
}
