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

/** ms in which a client must begin: TLS clients do at once. */
const SILENCE_MS = 3000;
/** First byte of TLS: a handshake record. */
const HANDSHAKE_RECORD = 0x16;
/**
 * A fatal alert, handshake_failure, of TLS 1.0 as alerts before a version is agreed on are. Whoever does not speak TLS, or
 * waits for us to begin, learns from it with whom it has to do.
 */
const ALERT = Uint8Array.of(0x15, 3, 1, 0, 2, 2, 40);

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

  /** Does a handshake. Resolves when it is over and `onPeer` or `onError` was told. Never rejects. */
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
    const first = await firstByte(socket, Math.min(SILENCE_MS, this.#handshakeMs));
    if (first !== HANDSHAKE_RECORD) {
      if (this.#entering.delete(socket)) this.#onError(foreign(from, first, socket));
      socket.end(ALERT, () => socket.destroy());
      return;
    }
    if (socket.destroyed) return;
    // A server that never listens, for this one connection: so what it tells is known to be of this one.
    const server = tls.createServer({
      ...tlsFacts,
      ...this.#files.material,
      requestCert: true,
      handshakeTimeout: this.#handshakeMs,
    });
    await new Promise<void>((resolve) => {
      server.on('secureConnection', (secure) => {
        this.#entering.delete(socket);
        this.#entered(secure, from);
        resolve();
      });
      server.on('tlsClientError', (error, secure) => {
        this.#entering.delete(socket);
        // For a certificate that was not accepted node:tls just closes, and keeps the reason here.
        const reason: unknown = secure.authorizationError;
        this.#onError(handshakeError(from, reason ?? error));
        secure.destroy();
        resolve();
      });
      socket.once('close', () => resolve());
      server.emit('connection', socket);
    });
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

/** The first byte that comes, which stays to be read; undefined if none does in time. */
async function firstByte(socket: net.Socket, ms: number): Promise<number | undefined> {
  let timer: NodeJS.Timeout | undefined;
  await new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
    socket.once('readable', resolve).once('close', resolve);
  });
  clearTimeout(timer);
  socket.removeAllListeners('readable');
  const chunk = socket.read() as Buffer | null;
  if (chunk === null) return undefined;
  socket.unshift(chunk);
  return chunk[0];
}

/** The error for one that does not begin as TLS does. */
function foreign(from: string, first: number | undefined, socket: net.Socket): XenMigrationError {
  if (first !== undefined) return handshakeError(from, { code: 'ERR_SSL_WRONG_VERSION_NUMBER' });
  const gone = socket.destroyed || socket.readableEnded;
  return new PeerError(
    gone ? 'ERR_XEN_PEER_LOST' : 'ERR_XEN_PEER_PROTOCOL',
    `${from}: it ${gone ? 'closed the connection without a word' : 'says nothing: it may not speak TLS'}`,
  );
}
