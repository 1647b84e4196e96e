/** TLS for a listener: handshakes, certificates, and files that change while it listens. */
import type net from 'node:net';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';
import { printable } from '../../bytes/printable.js';
import { debug } from '../../debug.js';
import { PeerError, type XenMigrationError } from '../../errors.js';
import type { ListenOptions, PeerOrigin } from './listen.js';
import { hasName, nameOf, tlsFacts, type TlsFiles } from './tls.js';
import { handshakeError } from './tls-errors.js';

const HANDSHAKE_MS = 10_000;
/** Handshakes that may be under way. More connections are closed at once: whoever floods us has no certificate. */
const MOST_HANDSHAKES = 64;

/** Lets in who has the right certificate. */
export class TlsDoor {
  readonly #files: TlsFiles;
  readonly #allow: readonly string[] | undefined;
  readonly #onError: (error: XenMigrationError) => void;
  readonly #onPeer: (peer: Duplex, origin: PeerOrigin) => void;
  readonly #handshakeMs: number;
  /** Connections whose handshake is under way. */
  readonly #entering = new Set<net.Socket>();

  constructor(files: TlsFiles, options: ListenOptions, onPeer: (peer: Duplex, origin: PeerOrigin) => void) {
    this.#files = files;
    this.#allow = options.tls?.allow;
    this.#onError = options.onError ?? ((error) => debug('%s', error.message));
    this.#onPeer = onPeer;
    this.#handshakeMs = options.handshakeMs ?? HANDSHAKE_MS;
  }

  /** Begins a handshake. Never rejects. */
  async enter(socket: net.Socket, from: string): Promise<void> {
    // Nobody else listens to its errors before the handshake is over.
    socket.on('error', () => undefined);
    if (this.#entering.size >= MOST_HANDSHAKES) {
      socket.destroy();
      return;
    }
    this.#entering.add(socket);
    socket.once('close', () => this.#entering.delete(socket));
    try {
      await this.#files.refresh();
    } catch (error) {
      this.#onError(error as XenMigrationError);
    }
    if (socket.destroyed) return;
    // A server that never listens, for this one connection: so what it tells is known to be of this one.
    const server = tls.createServer({
      ...tlsFacts,
      ...this.#files.material,
      requestCert: true,
      handshakeTimeout: this.#handshakeMs,
    });
    server.on('secureConnection', (secure) => {
      this.#entering.delete(socket);
      this.#entered(secure, from);
    });
    server.on('tlsClientError', (error, secure) => {
      this.#entering.delete(socket);
      // For a certificate that was not accepted node:tls just closes, and keeps the reason here.
      const reason: unknown = secure.authorizationError;
      this.#onError(handshakeError(from, reason ?? error));
      secure.destroy();
    });
    server.emit('connection', socket);
  }

  /** Cuts the connections whose handshake is under way. */
  close(): void {
    for (const socket of this.#entering) socket.destroy();
  }

  #entered(socket: tls.TLSSocket, from: string): void {
    const certificate = socket.getPeerX509Certificate();
    // node:tls has checked it; that this code is reached without one would be a defect.
    if (!socket.authorized || certificate === undefined) {
      socket.destroy();
      return;
    }
    const name = printable(nameOf(certificate));
    if (this.#allow !== undefined && !hasName(certificate, this.#allow)) {
      socket.destroy();
      this.#onError(
        new PeerError(
          'ERR_XEN_PEER_UNTRUSTED',
          `${from}: its certificate, of ${name}, has none of the names that are allowed`,
        ),
      );
      return;
    }
    this.#onPeer(socket, { from, certificateName: name });
  }
}
