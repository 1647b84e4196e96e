/** Turning what went wrong into the one error that a save rejects with. */
import { GuestError, HypercallError, withCleanupError, XenMigrationError } from '../errors.js';
import type { JobControl } from '../job.js';
import { SaveErrorCode } from './codes.js';

/**
 * The error of a failed save. If the job was cancelled, the reason is the error, and what the cancellation made fail
 * stands beside it.
 */
export function errorOfSave(control: JobControl, caught: unknown): XenMigrationError {
  const { signal } = control;
  let error = caught;
  if (signal.aborted && signal.reason !== caught) {
    withCleanupError(signal.reason, caught);
    error = signal.reason;
  }
  const first = XenMigrationError.is(error)
    ? error
    : new XenMigrationError('ERR_XEN_INTERNAL', `save failed: ${text(error)}`, { cause: error });
  first.phase ??= control.phase;
  first.domid ??= control.status.domid;
  return first;
}

/**
 * The error to reject with once it is known where the guest is: what a hypercall said of a domain that was destroyed meanwhile
 * (ESRCH, or EBUSY for a frame that is somebody else's now) tells nobody so.
 */
export function goneOr(error: XenMigrationError): XenMigrationError {
  const { guest, domid, phase } = error;
  if (!(error instanceof HypercallError) || guest?.state !== 'gone') return error;
  const what = `domain ${String(domid)} was destroyed while it was being saved`;
  const gone = new GuestError(SaveErrorCode.GUEST_GONE, what, { cause: error, domid, phase, guest });
  gone.cleanupErrors.push(...error.cleanupErrors);
  return gone;
}

/** Calls one of the user's functions; what it throws becomes ERR_XEN_CALLBACK. */
export function callback<T>(name: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw callbackError(name, error);
  }
}

/** Calls one of the user's asynchronous functions, and does not wait for it once the job is cancelled. */
export async function fromCallback(
  control: JobControl,
  name: string,
  call: (signal: AbortSignal) => Promise<void> | void,
): Promise<void> {
  const { signal } = control;
  const called = Promise.resolve(callback(name, () => call(signal))).catch((error: unknown) => {
    throw callbackError(name, error);
  });
  let onAbort = (): void => undefined;
  const aborted = new Promise<void>((resolve) => {
    onAbort = resolve;
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    await Promise.race([called, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
    // Of a function that goes on after the job was cancelled nobody hears any more.
    called.catch(() => undefined);
  }
  control.throwIfCancelled();
}

function callbackError(name: string, error: unknown): XenMigrationError {
  if (XenMigrationError.is(error)) return error;
  return new XenMigrationError('ERR_XEN_CALLBACK', `${name} failed: ${text(error)}`, { cause: error });
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
