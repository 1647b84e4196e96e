/** The client's side of a TLS handshake. */
import net from 'node:net';
import tls from 'node:tls';
import type { XenMigrationError } from '../../errors.js';
import { cancellation } from '../failure.js';
import { tlsFacts, type TlsMaterial } from './tls.js';
import { handshakeError, handshakeTimeout, rejectedError } from './tls-errors.js';

/**
 * ms after the handshake in which the server is listened to for its rejection of our certificate, which in TLS 1.3 comes
 * when the handshake is over for us. A server that speaks first, as the receivers of this library do, cuts that short.
 */
const REJECTION_MS = 1000;

export interface SecuredOptions {
  /** The server's address, for messages. */
  readonly where: string;
  /** The name, or IP address, that its certificate must have. */
  readonly name: string;
  readonly material: TlsMaterial;
  /** ms that are left of `timeoutMs`. */
  readonly leftMs: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

/** TLS over a connection that stands. Rejects as `connectPeer` does; the connection is destroyed then. */
export function secured(tcp: net.Socket, options: SecuredOptions): Promise<tls.TLSSocket> {
  const { name, material } = options;
  const socket = tls.connect({
    ...tlsFacts,
    ...material,
    socket: tcp,
    // An IP address may not be sent as a server's name.
    ...(net.isIP(name) === 0 ? { servername: name } : {}),
    checkServerIdentity: (_host, certificate) => tls.checkServerIdentity(name, certificate),
  });
  return new Promise((resolve, reject) => new Handshake(socket, options, resolve, reject));
}

/** Waits until a handshake is over and the server has not hung up on our certificate. */
class Handshake {
  readonly #socket: tls.TLSSocket;
  readonly #options: SecuredOptions;
  readonly #resolve: (socket: tls.TLSSocket) => void;
  readonly #reject: (error: XenMigrationError) => void;
  #timer: NodeJS.Timeout;
  #secure = false;

  constructor(
    socket: tls.TLSSocket,
    options: SecuredOptions,
    resolve: (socket: tls.TLSSocket) => void,
    reject: (error: XenMigrationError) => void,
  ) {
    this.#socket = socket;
    this.#options = options;
    this.#resolve = resolve;
    this.#reject = reject;
    const { where, leftMs, timeoutMs, signal } = options;
    const late = (): void => this.#fail(handshakeTimeout(where, timeoutMs));
    this.#timer = setTimeout(late, Math.min(leftMs, 2 ** 31 - 1));
    socket.on('secureConnect', this.#onSecure).on('error', this.#onError).on('close', this.#onClose);
    signal?.addEventListener('abort', this.#onAbort, { once: true });
    if (signal?.aborted === true) this.#onAbort();
  }

  readonly #onSecure = (): void => {
    this.#secure = true;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#succeed(), REJECTION_MS);
    this.#socket.on('readable', this.#onReadable).on('end', this.#onClose);
  };

  readonly #onReadable = (): void => {
    // Data is left where it is. Without data this is the end, which shows itself when one reads.
    if (this.#socket.readableLength > 0) this.#succeed();
    else this.#socket.read();
  };

  readonly #onError = (cause: NodeJS.ErrnoException): void => {
    const lost = cause.code === 'ECONNRESET' || cause.code === 'EPIPE';
    const { where } = this.#options;
    this.#fail(this.#secure && lost ? rejectedError(where, cause) : handshakeError(where, cause));
  };

  readonly #onClose = (): void => {
    const { where } = this.#options;
    this.#fail(this.#secure ? rejectedError(where) : handshakeError(where, undefined));
  };

  readonly #onAbort = (): void => {
    const { where, signal } = this.#options;
    this.#fail(cancellation(signal?.reason, `connecting to ${where}`));
  };

  #succeed(): void {
    this.#stop();
    this.#resolve(this.#socket);
  }

  #fail(error: XenMigrationError): void {
    this.#stop();
    this.#socket.on('error', () => undefined);
    this.#socket.destroy();
    this.#reject(error);
  }

  #stop(): void {
    clearTimeout(this.#timer);
    this.#options.signal?.removeEventListener('abort', this.#onAbort);
    const socket = this.#socket;
    socket.off('secureConnect', this.#onSecure).off('error', this.#onError).off('close', this.#onClose);
    socket.off('readable', this.#onReadable).off('end', this.#onClose);
  }
}
