/** The errno that a failed save or restore is reported to libxl with: the one at the root of it, if there is one. */
import { constants } from 'node:os';
import {
  AddonError,
  CancelledError,
  StreamFormatError,
  TimeoutError,
  UsageError,
  XenMigrationError,
} from '../errors.js';
import { StreamErrorCode } from '../stream/codes.js';

const { EBADMSG, ECANCELED, EINVAL, EIO, ENODATA, ENOSYS, ETIMEDOUT } = constants.errno;

/** Causes of causes that are looked at. */
const MAX_DEPTH = 8;

/** Always positive: libxl would take 0 for "no error". */
export function errnoOf(error: unknown): number {
  // Whatever a cancellation made fail, it was the cancellation.
  if (error instanceof CancelledError) return ECANCELED;
  let at: unknown = error;
  for (let depth = 0; at instanceof Error && depth < MAX_DEPTH; depth++) {
    const errno = ownErrno(at);
    if (errno !== undefined) return errno;
    at = at.cause;
  }
  return errnoOfKind(error);
}

/** HypercallError and the addon count positive, Node's own errors negative. */
function ownErrno(error: Error): number | undefined {
  const { errno, code } = error as { errno?: unknown; code?: unknown };
  if (typeof errno === 'number' && Number.isInteger(errno) && errno !== 0) return Math.abs(errno);
  if (typeof code !== 'string') return undefined;
  return (constants.errno as Readonly<Record<string, number>>)[code];
}

function errnoOfKind(error: unknown): number {
  if (error instanceof StreamFormatError) {
    return error.code === StreamErrorCode.TRUNCATED ? ENODATA : EBADMSG;
  }
  if (error instanceof TimeoutError) return ETIMEDOUT;
  if (error instanceof UsageError) return EINVAL;
  if (error instanceof AddonError) return ENOSYS;
  return XenMigrationError.is(error) ? EIO : EINVAL;
}
