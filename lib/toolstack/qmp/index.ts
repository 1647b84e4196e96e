/** The client of QEMU's monitor. See docs/reference/xenstore.md. */
export {
  QMP_OPEN_TIMEOUT_MS,
  QMP_TIMEOUT_MS,
  QmpClient,
  openQmp,
  type OpenQmpOptions,
  type QemuStatus,
  type QmpOptions,
} from './client.js';
export type { QemuVersion, QmpEvent } from './wire.js';
