export { defineBackend } from './backend/define.js';
export type { BackendContext, BackendDefinition, BackendInstance, BackendLog } from './backend/define.js';
export { SupervisorError } from './errors.js';
export { serve } from './serve.js';
export type { ServeOptions, ServedDevice, Serving, StopOptions } from './serve.js';
export type { Log } from './supervisor/device-log.js';
export type { CrashStatus, DeviceStatus, ExitStatus, OperationStatus } from './supervisor/status.js';
export type { QuarantinedRequestStatus, QueueStatus, Status } from './supervisor/status.js';
