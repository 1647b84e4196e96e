/** TLS 1.3 with certificates of both sides: their files, and what a failed handshake means. */
import { constants, createPrivateKey, X509Certificate, type KeyObject } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import net from 'node:net';
import tls from 'node:tls';
import { UsageError } from '../../errors.js';

/** Certificates for one side. Files are PEM; give their paths, or their contents as bytes. */
export interface PeerTls {
  /** This side's certificate, then those between it and its CA. */
  readonly cert: string | Uint8Array;
  /** Its private key. */
  readonly key: string | Uint8Array;
  /**
   * The CAs that the other side's certificate may come from. `system` takes those that Node brings along, which vouch for
   * anybody who has a web server; a listener then needs `allow`.
   */
  readonly ca: string | Uint8Array;
  /**
   * Revocation lists (CRLs) of those CAs, one after the other in PEM. If given, each CA between the other side's
   * certificate and the trusted one must have a list in it that has not expired, or nobody is trusted.
   */
  readonly crl?: string | Uint8Array | undefined;
  /** Sender: the name that the receiver's certificate must have. Default: the host of its address. */
  readonly serverName?: string | undefined;
  /**
   * Receiver: a sender's certificate must have one of these names: DNS names and IP addresses of its subjectAltName, or
   * its CN if it has no DNS names. Default: any certificate of `ca` will do.
   */
  readonly allow?: readonly string[] | undefined;
}

/** What both sides ask of TLS. */
export const tlsFacts = {
  minVersion: 'TLSv1.3',
  maxVersion: 'TLSv1.3',
  rejectUnauthorized: true,
  // Each connection shows its certificate anew: no session outlives a certificate or a change of the CA.
  secureOptions: constants.SSL_OP_NO_TICKET,
} as const satisfies tls.CommonConnectionOptions & tls.SecureContextOptions;

export const SYSTEM_CA = 'system';

const CRL_PEM = /-----BEGIN X509 CRL-----[^-]*-----END X509 CRL-----/g;

/** Contents of the files, as node:tls takes them. */
export interface TlsMaterial {
  readonly cert: Buffer;
  readonly key: Buffer;
  /** Undefined: those that Node brings along. */
  readonly ca: Buffer | undefined;
  /** One in each: node:tls reads no further than the first. Undefined: revocation is not looked at. */
  readonly crl: string[] | undefined;
}

/**
 * Reads and checks the files.
 *
 * @throws UsageError that names the file for one that cannot be read or holds something else, for a key that is another
 *   certificate's, and for a certificate that has expired or is not valid yet
 */
export async function loadTls(options: PeerTls): Promise<TlsMaterial> {
  const [cert, key, ca, crl] = await Promise.all([
    contents(options.cert, 'certificate'),
    contents(options.key, 'key'),
    options.ca === SYSTEM_CA ? undefined : contents(options.ca, 'CA certificate'),
    options.crl === undefined ? undefined : contents(options.crl, 'revocation list'),
  ]);
  const own = certificateOf(cert, options.cert, 'certificate');
  if (ca !== undefined) certificateOf(ca, options.ca, 'CA certificate');
  let secret: KeyObject;
  try {
    secret = createPrivateKey(key);
  } catch (cause) {
    const encrypted = /ENCRYPTED/.test(key.toString('latin1'));
    const what = encrypted
      ? 'is encrypted; a service needs one without a passphrase'
      : 'holds no private key';
    throw new UsageError(`${fileName(options.key, 'the key')} ${what}`, { cause });
  }
  if (!own.checkPrivateKey(secret)) {
    throw new UsageError(
      `${fileName(options.key, 'the key')} is not the key of ${fileName(options.cert, 'the certificate')}`,
    );
  }
  const wrong = outOfTime(own);
  if (wrong !== undefined) throw new UsageError(`${fileName(options.cert, 'the certificate')} ${wrong}`);
  return { cert, key, ca, crl: crl === undefined ? undefined : crlsOf(crl, options.crl ?? '') };
}

async function contents(file: string | Uint8Array, what: string): Promise<Buffer> {
  if (typeof file !== 'string') return Buffer.from(file);
  try {
    return await readFile(file);
  } catch (cause) {
    throw new UsageError(`the ${what} cannot be read: ${(cause as Error).message}`, { cause });
  }
}

function certificateOf(pem: Buffer, file: string | Uint8Array, what: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new UsageError(`${fileName(file, `the ${what}`)} holds no certificate in PEM`, { cause });
  }
}

function crlsOf(pem: Buffer, file: string | Uint8Array): string[] {
  const lists = pem.toString('latin1').match(CRL_PEM) ?? [];
  try {
    if (lists.length === 0) throw new Error('no X509 CRL in it');
    tls.createSecureContext({ crl: lists });
  } catch (cause) {
    throw new UsageError(`${fileName(file, 'the revocation list')} holds no revocation list in PEM`, {
      cause,
    });
  }
  return lists;
}

function fileName(file: string | Uint8Array, what: string): string {
  return typeof file === 'string' ? file : what;
}

/** Says that a certificate is out of its time; undefined if it is not. */
export function outOfTime({
  validFrom,
  validTo,
}: Pick<X509Certificate, 'validFrom' | 'validTo'>): string | undefined {
  const now = Date.now();
  if (now < Date.parse(validFrom)) return `is not valid before ${validFrom}`;
  if (now > Date.parse(validTo)) return `expired on ${validTo}`;
  return undefined;
}

/** The files of a service, read anew once they have changed: certificates expire, and services run for months. */
export class TlsFiles {
  readonly #options: PeerTls;
  #stamp: string;
  #material: TlsMaterial;

  private constructor(options: PeerTls, stamp: string, material: TlsMaterial) {
    this.#options = options;
    this.#stamp = stamp;
    this.#material = material;
  }

  /** Reads the files for the first time. Rejects as `loadTls` does. */
  static async open(options: PeerTls): Promise<TlsFiles> {
    const stamp = await stampOf(options);
    return new TlsFiles(options, stamp, await loadTls(options));
  }

  get material(): TlsMaterial {
    return this.#material;
  }

  /**
   * Reads the files if they have changed. Resolves to true if there is something new. Rejects once for each change that
   * cannot be used; what was there before stays.
   */
  async refresh(): Promise<boolean> {
    const stamp = await stampOf(this.#options);
    if (stamp === this.#stamp) return false;
    this.#stamp = stamp;
    this.#material = await loadTls(this.#options);
    return true;
  }
}

async function stampOf({ cert, key, ca, crl }: PeerTls): Promise<string> {
  const stamps = [cert, key, ca, crl].map(async (file) => {
    if (typeof file !== 'string' || file === SYSTEM_CA) return '';
    const facts = await stat(file, { bigint: true }).catch(() => undefined);
    return facts === undefined ? 'none' : [facts.dev, facts.ino, facts.size, facts.mtimeNs].join();
  });
  return (await Promise.all(stamps)).join(';');
}

/** One of these names is the certificate's. */
export function hasName(certificate: X509Certificate, names: readonly string[]): boolean {
  return names.some((name) =>
    net.isIP(name) === 0
      ? certificate.checkHost(name, { subject: 'default', wildcards: false }) !== undefined
      : certificate.checkIP(name) !== undefined,
  );
}

/** What a certificate calls its owner, for messages and logs. */
export function nameOf(certificate: X509Certificate): string {
  const cn = /^CN=(.*)$/m.exec(certificate.subject)?.[1];
  return cn ?? certificate.subjectAltName ?? certificate.subject.replaceAll('\n', ', ');
}
