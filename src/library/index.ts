export { defineBackend } from '../js-backend/define.js';
export type { BackendContext, BackendDefinition, BackendInstance, BackendLog } from '../js-backend/define.js';
export { SupervisorError } from '../errors.js';
export { serve } from './serve.js';
export type { ServeOptions, ServedDevice, Serving, StopOptions } from './serve.js';
export type { Log } from '../log/log.js';
export type { CrashStatus, DeviceStatus, ExitStatus, OperationStatus } from '../api/status.js';
export type { QuarantinedRequestStatus, QueueStatus, Status } from '../api/status.js';
