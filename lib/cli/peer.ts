/** Options of `migrate` and `receive` that say how to speak with the other side. */
import { UsageError } from '../errors.js';
import { compressionsHere } from '../transport/compress.js';
import type { PeerAddress, PeerTls } from '../transport/peer/index.js';
import { choiceOf } from './values.js';

export const tlsOptions = {
  'tls-cert': { type: 'string' },
  'tls-key': { type: 'string' },
  'tls-ca': { type: 'string' },
  'tls-crl': { type: 'string' },
} as const;

export const tlsHelp = `  --tls-cert FILE       this side's certificate (PEM), for tls://
  --tls-key FILE        its key
  --tls-ca FILE         the CAs that the other side's certificate must come from
  --tls-crl FILE        their revocation lists (PEM, one after the other): who is in one is not trusted
`;

/**
 * The certificates that the options name; undefined if they name none. Throws UsageError if some are missing, or not
 * needed.
 */
export function tlsFrom(
  values: { readonly [K in keyof typeof tlsOptions]?: string | undefined },
  more: Pick<PeerTls, 'serverName' | 'allow'>,
  address: PeerAddress,
): PeerTls | undefined {
  const { 'tls-cert': cert, 'tls-key': key, 'tls-ca': ca, 'tls-crl': crl } = values;
  const wanted = [cert, key, ca, crl, more.serverName, more.allow].some((value) => value !== undefined);
  if (!wanted && address.kind !== 'tls') return undefined;
  if (cert === undefined || key === undefined || ca === undefined) {
    throw new UsageError('TLS needs --tls-cert, --tls-key and --tls-ca');
  }
  return { cert, key, ca, crl, ...more };
}

/** `--compress zstd,brotli`. Throws UsageError for what this Node does not have. */
export function compressionFrom(text: string | undefined): string[] | undefined {
  return text?.split(',').map((name) => choiceOf(name.trim(), '--compress', compressionsHere()));
}
