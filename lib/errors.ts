/**
 * Errors: one class for each way of handling, one `code` for each reason, the cause always kept.
 *
 * Every error that can reach a caller says where the guest is, because "what happened to my guest?" is the first
 * question of whoever reads it.
 */

/** Which side holds the guest that an error speaks of. */
export type GuestPlace = 'source' | 'destination' | 'unknown' | 'none';

/** What the guest is doing there. */
export type GuestState = 'running' | 'paused' | 'suspended' | 'gone' | 'unknown';

/** Where the guest is, as far as this side knows. */
export interface GuestWhereabouts {
  readonly host: GuestPlace;
  readonly state: GuestState;
}

/** Facts that any error of the library may carry. */
export interface ErrorFacts {
  readonly cause?: unknown;
  /** Phase of the operation, for instance `pre-copy`, `suspend`, `static-data`. */
  readonly phase?: string | undefined;
  readonly domid?: number | undefined;
  readonly guest?: GuestWhereabouts | undefined;
}

const BRAND = Symbol.for('xen-migration.error');

/** Base class of all errors of the library. */
export class XenMigrationError extends Error {
  override readonly name: string = 'XenMigrationError';
  /** Stable reason, `ERR_XEN_…`. */
  readonly code: string;
  phase: string | undefined;
  domid: number | undefined;
  /** Where the guest is. Set by the operation that knows, at the latest when it ends. */
  guest: GuestWhereabouts | undefined;
  /** Failures of the clean-up that followed. They stand beside the first error, never instead of it. */
  readonly cleanupErrors: unknown[] = [];
  readonly [BRAND] = true;

  constructor(code: string, message: string, facts: ErrorFacts = {}) {
    super(message, 'cause' in facts ? { cause: facts.cause } : undefined);
    this.code = code;
    this.phase = facts.phase;
    this.domid = facts.domid;
    this.guest = facts.guest;
  }

  /** True for errors of this library, also of another copy of it in the same process. */
  static is(value: unknown): value is XenMigrationError {
    return typeof value === 'object' && value !== null && (value as { [BRAND]?: unknown })[BRAND] === true;
  }
}

/** A call was made with arguments that cannot be right. */
export class UsageError extends XenMigrationError {
  override readonly name = 'UsageError';
  constructor(message: string, facts: ErrorFacts = {}) {
    super('ERR_XEN_INVALID_ARGUMENT', message, facts);
  }
}

/** Where in a stream something was found. */
export interface StreamPlace {
  /** Byte offset from the start of the stream. */
  readonly offset: number;
  /** Name of the header or record, for instance `PAGE_DATA`. */
  readonly record?: string | undefined;
  /** Path of the field within it, for instance `pfns[3].type`. */
  readonly path?: string | undefined;
}

/** A stream (libxc, libxl, xl or legacy) breaks its format. */
export class StreamFormatError extends XenMigrationError {
  override readonly name = 'StreamFormatError';
  readonly offset: number;
  readonly record: string | undefined;
  readonly path: string | undefined;
  /** The message without the place. */
  readonly reason: string;

  constructor(code: string, reason: string, place: StreamPlace, facts: ErrorFacts = {}) {
    const where = [place.record, place.path].filter((s) => s !== undefined).join('.');
    super(code, `${where === '' ? '' : `${where}: `}${reason} (at offset ${String(place.offset)})`, facts);
    this.reason = reason;
    this.offset = place.offset;
    this.record = place.record;
    this.path = place.path;
  }
}

/** A hypercall, or the simulator in its place, refused. */
export class HypercallError extends XenMigrationError {
  override readonly name = 'HypercallError';
  /** Name of the operation, for instance `XEN_DOMCTL_SHADOW_OP_CLEAN`. */
  readonly syscall: string;
  /** Positive errno, for instance 7 for E2BIG. */
  readonly errno: number;
  constructor(syscall: string, errno: number, message: string, facts: ErrorFacts = {}) {
    super('ERR_XEN_HYPERCALL', `${syscall}: ${message}`, facts);
    this.syscall = syscall;
    this.errno = errno;
  }
}

/** The peer of a migration vanished, refused, or spoke something else than the protocol. */
export class PeerError extends XenMigrationError {
  override readonly name = 'PeerError';
  constructor(
    code:
      | 'ERR_XEN_PEER_LOST'
      | 'ERR_XEN_PEER_REFUSED'
      | 'ERR_XEN_PEER_PROTOCOL'
      | 'ERR_XEN_PEER_UNTRUSTED'
      | 'ERR_XEN_HANDOVER_UNKNOWN',
    message: string,
    facts: ErrorFacts = {},
  ) {
    super(code, message, facts);
  }
}

/** A phase took longer than it may. */
export class TimeoutError extends XenMigrationError {
  override readonly name = 'TimeoutError';
  readonly ms: number;
  constructor(phase: string, ms: number, message: string, facts: ErrorFacts = {}) {
    super('ERR_XEN_TIMEOUT', message, { ...facts, phase });
    this.ms = ms;
  }
}

/** The guest did not do its part: did not suspend, crashed, changed its p2m, … */
export class GuestError extends XenMigrationError {
  override readonly name = 'GuestError';
}

/** The operation was cancelled by `cancel()`, by an AbortSignal or by its policy. `cause` is the signal's reason. */
export class CancelledError extends XenMigrationError {
  override readonly name = 'CancelledError';
  constructor(message: string, facts: ErrorFacts = {}) {
    super('ERR_XEN_CANCELLED', message, facts);
  }
}

/** A file or socket failed on this side. `cause` is Node's error. */
export class TransportError extends XenMigrationError {
  override readonly name = 'TransportError';
  constructor(message: string, facts: ErrorFacts = {}) {
    super('ERR_XEN_TRANSPORT', message, facts);
  }
}

/** Facts of an XenstoreError. */
export interface XenstoreFacts extends ErrorFacts {
  /** The node, or the special watch, that was spoken of. */
  readonly path?: string | undefined;
}

/** xenstored refused, cannot be reached, went away, or speaks something else than its protocol. */
export class XenstoreError extends XenMigrationError {
  override readonly name = 'XenstoreError';
  /** Name of the operation, for instance `XS_READ`; `open` if there was no connection to speak over. */
  readonly operation: string;
  /** Positive errno, for instance 13 for EACCES; 104 (ECONNRESET) once the connection is lost. */
  readonly errno: number;
  readonly path: string | undefined;
  constructor(operation: string, errno: number, message: string, facts: XenstoreFacts = {}) {
    const subject = facts.path === undefined ? operation : `${operation} ${facts.path}`;
    super('ERR_XEN_XENSTORE', `xenstore: ${subject}: ${message}`, facts);
    this.operation = operation;
    this.errno = errno;
    this.path = facts.path;
  }
}

/** The device model (QEMU) refused a command, cannot be reached, went away, or speaks something else than QMP. */
export class DeviceModelError extends XenMigrationError {
  override readonly name = 'DeviceModelError';
  /** The QMP command, for instance `xen-save-devices-state`; `connect` if there was no connection to speak over. */
  readonly command: string;
  /** QMP's class of the error, for instance `GenericError` or `CommandNotFound`; undefined if QEMU did not answer. */
  readonly errorClass: string | undefined;
  constructor(command: string, errorClass: string | undefined, message: string, facts: ErrorFacts = {}) {
    super('ERR_XEN_DEVICE_MODEL', `QEMU: ${command}: ${message}`, facts);
    this.command = command;
    this.errorClass = errorClass;
  }
}

/** Why the native addon cannot be used. */
export type AddonErrorCode =
  | 'ERR_XEN_ADDON_MISSING'
  | 'ERR_XEN_ADDON_NO_XEN'
  | 'ERR_XEN_ADDON_LIBRARY'
  | 'ERR_XEN_NO_PRIVCMD'
  | 'ERR_XEN_PERMISSION'
  | 'ERR_XEN_VERSION_MISMATCH';

/** The native addon, or what it needs of this machine, is missing. The message names the cure. */
export class AddonError extends XenMigrationError {
  override readonly name = 'AddonError';
  declare readonly code: AddonErrorCode;
  constructor(code: AddonErrorCode, message: string, facts: ErrorFacts = {}) {
    super(code, message, facts);
  }
}

/** The first error, with the failure of a clean-up step recorded beside it. */
export function withCleanupError(first: unknown, later: unknown): unknown {
  if (XenMigrationError.is(first) && first !== later) first.cleanupErrors.push(later);
  return first;
}

/** Throws a CancelledError if the signal is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined, phase: string, domid?: number): void {
  if (signal?.aborted !== true) return;
  if (XenMigrationError.is(signal.reason)) throw signal.reason;
  throw new CancelledError(`cancelled during ${phase}`, { cause: signal.reason, phase, domid });
}

/** What an error says, whatever was thrown. */
export function errorMessage(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
