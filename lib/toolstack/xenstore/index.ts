/** The client of xenstored. See docs/reference/xenstore.md. */
export {
  XENSTORE_TIMEOUT_MS,
  XenstoreClient,
  XenstoreTransaction,
  type TransactionOptions,
} from './client.js';
export type { XenstoreOptions } from './connection.js';
export type { FdWatch, ReadableWatch } from './device.js';
export type { LinkEvents, XenstoreLink } from './link.js';
export { XenstoreNodes } from './nodes.js';
export { openXenstore, xenstorePaths, type OpenXenstoreOptions } from './open.js';
export { XenstoreWatch, type WatchOptions } from './watch.js';
export type { XenstorePermission } from './wire.js';
