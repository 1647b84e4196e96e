/** How Node's I/O errors become the library's. */

import { CancelledError, PeerError, TransportError, XenMigrationError } from '../errors.js';

/** Codes with which Node says that whoever was at the other end is no longer there. */
const LOST = new Set([
  'ECONNRESET',
  'ECONNABORTED',
  'EPIPE',
  'ETIMEDOUT',
  'ENETDOWN',
  'ENETRESET',
  'ENETUNREACH',
  'EHOSTUNREACH',
  'ENOTCONN',
  'ERR_STREAM_PREMATURE_CLOSE',
  'ERR_STREAM_DESTROYED',
]);

function codeOf(cause: unknown): string | undefined {
  if (typeof cause !== 'object' || cause === null) return undefined;
  const code = (cause as { code?: unknown }).code;
  return typeof code === 'string' ? code : undefined;
}

/**
 * The error for a failed read, write, open or close.
 *
 * @param doing What failed, for instance `reading guest.save`
 * @returns PeerError ERR_XEN_PEER_LOST if the other end is gone, else TransportError; errors of the library and
 *   `cause` itself if it is one, unchanged
 */
export function transportFailure(cause: unknown, doing: string): XenMigrationError {
  if (XenMigrationError.is(cause)) return cause;
  const text = cause instanceof Error ? cause.message : String(cause);
  const message = `${doing}: ${text}`;
  return LOST.has(codeOf(cause) ?? '')
    ? new PeerError('ERR_XEN_PEER_LOST', message, { cause })
    : new TransportError(message, { cause });
}

/** The error for a peer that went away without an error of its own. */
export function peerLost(doing: string, cause?: unknown): PeerError {
  return new PeerError('ERR_XEN_PEER_LOST', `${doing}: the connection was closed`, { cause });
}

/** The error for an aborted wait: the signal's reason if it is one of ours, else a CancelledError that carries it. */
export function cancellation(reason: unknown, doing: string): XenMigrationError {
  if (XenMigrationError.is(reason)) return reason;
  return new CancelledError(`${doing}: cancelled`, { cause: reason, phase: 'transport' });
}
