/** What failed in a TLS handshake, in words. */
import { printable } from '../../bytes/printable.js';
import { PeerError, TimeoutError, XenMigrationError } from '../../errors.js';

type Code = ConstructorParameters<typeof PeerError>[0];

/** The other side's certificate is not accepted here. */
const untrusted: Readonly<Record<string, string>> = {
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is not of the CA that this side trusts but signed by itself',
  SELF_SIGNED_CERT_IN_CHAIN: 'its certificate is of another CA than this side trusts',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate is of another CA than this side trusts',
  UNABLE_TO_GET_ISSUER_CERT: 'its certificate is of another CA than this side trusts',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate is of another CA than this side trusts',
  CERT_SIGNATURE_FAILURE: 'its certificate is not signed by the CA that it names',
  CERT_HAS_EXPIRED: 'its certificate, or that of its CA, has expired',
  CERT_NOT_YET_VALID: 'its certificate, or that of its CA, is not valid yet',
  CERT_UNTRUSTED: 'its certificate is not trusted for this use',
  INVALID_PURPOSE: 'its certificate is not made for this use (extendedKeyUsage)',
  INVALID_CA: 'its certificate is signed by one that is no CA',
  CERT_REVOKED: 'its certificate, or that of its CA, is revoked',
  UNABLE_TO_GET_CRL: 'this side has no revocation list of the CA of its certificate',
  CRL_HAS_EXPIRED: 'the revocation list that this side has of the CA of its certificate has expired',
  CRL_NOT_YET_VALID: 'the revocation list that this side has of the CA of its certificate is not valid yet',
  CRL_SIGNATURE_FAILURE: 'the revocation list that this side has is not signed by the CA of its certificate',
};

/** Endings of OpenSSL's codes, ERR_SSL_… */
const told: readonly (readonly [ending: string, code: Code, text: string])[] = [
  ['ALERT_CERTIFICATE_REQUIRED', 'ERR_XEN_PEER_REFUSED', 'it wants a certificate of this side'],
  ['ALERT_UNKNOWN_CA', 'ERR_XEN_PEER_REFUSED', 'it does not trust the CA of this side’s certificate'],
  ['ALERT_CERTIFICATE_EXPIRED', 'ERR_XEN_PEER_REFUSED', 'it finds the certificate of this side expired'],
  ['ALERT_CERTIFICATE_REVOKED', 'ERR_XEN_PEER_REFUSED', 'it finds the certificate of this side revoked'],
  ['ALERT_CERTIFICATE_UNKNOWN', 'ERR_XEN_PEER_REFUSED', 'it does not accept the certificate of this side'],
  ['ALERT_BAD_CERTIFICATE', 'ERR_XEN_PEER_REFUSED', 'it does not accept the certificate of this side'],
  [
    'ALERT_UNSUPPORTED_CERTIFICATE',
    'ERR_XEN_PEER_REFUSED',
    'it does not accept the certificate of this side',
  ],
  ['ALERT_ACCESS_DENIED', 'ERR_XEN_PEER_REFUSED', 'it does not let this side in'],
  ['PEER_DID_NOT_RETURN_A_CERTIFICATE', 'ERR_XEN_PEER_UNTRUSTED', 'it has shown no certificate'],
  ['ALERT_PROTOCOL_VERSION', 'ERR_XEN_PEER_PROTOCOL', 'it does not speak TLS 1.3'],
  ['UNSUPPORTED_PROTOCOL', 'ERR_XEN_PEER_PROTOCOL', 'it does not speak TLS 1.3'],
  ['WRONG_VERSION_NUMBER', 'ERR_XEN_PEER_PROTOCOL', 'it does not speak TLS'],
  ['PACKET_LENGTH_TOO_LONG', 'ERR_XEN_PEER_PROTOCOL', 'it does not speak TLS'],
  ['HTTP_REQUEST', 'ERR_XEN_PEER_PROTOCOL', 'it speaks HTTP and not TLS'],
];

/** An OpenSSL code for a record that makes no sense at the handshake's beginning. */
const NONSENSE = /^ERR_SSL_(UNEXPECTED_MESSAGE|BAD_RECORD_TYPE|INVALID_|RECORD_|UNKNOWN_PROTOCOL)/;

/**
 * The error for a handshake that failed.
 *
 * @param where Who is at the other end: an address
 * @param cause Node's error, or the code of a certificate that was not accepted
 */
export function handshakeError(where: string, cause: unknown): XenMigrationError {
  if (XenMigrationError.is(cause)) return cause;
  const { code = String(cause), message = '' } = (
    typeof cause === 'object' && cause !== null ? cause : {}
  ) as { code?: string; message?: string };
  const make = (kind: Code, text: string): PeerError => new PeerError(kind, `${where}: ${text}`, { cause });
  const own = untrusted[code];
  if (own !== undefined) return make('ERR_XEN_PEER_UNTRUSTED', own);
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    const { reason = message } = cause as { reason?: string };
    return make('ERR_XEN_PEER_UNTRUSTED', `its certificate is for another name: ${printable(reason)}`);
  }
  for (const [ending, kind, text] of told) if (code.endsWith(ending)) return make(kind, text);
  if (NONSENSE.test(code)) return make('ERR_XEN_PEER_PROTOCOL', 'it does not speak TLS');
  if (code.startsWith('ERR_SSL_') || code.startsWith('ERR_OSSL_')) {
    return make('ERR_XEN_PEER_PROTOCOL', `TLS failed: ${printable(message)}`);
  }
  if (code === 'ERR_TLS_HANDSHAKE_TIMEOUT')
    return make('ERR_XEN_PEER_LOST', 'it did not finish the TLS handshake in time');
  return make('ERR_XEN_PEER_LOST', 'the connection was lost in the TLS handshake');
}

/** The error for a server that closed right after the handshake: in TLS 1.3 it looks at the client's certificate last. */
export function rejectedError(where: string, cause?: unknown): PeerError {
  return new PeerError(
    'ERR_XEN_PEER_REFUSED',
    `${where}: it closed the connection right after the TLS handshake; it may not accept the certificate of this side, ` +
      'which its log tells',
    cause === undefined ? {} : { cause },
  );
}

/** The error for a handshake that takes too long. */
export function handshakeTimeout(where: string, ms: number): TimeoutError {
  return new TimeoutError('connect', ms, `${where}: it did not finish the TLS handshake within ${ms} ms`);
}
