/** The connection of a migration: frames over the two directions of a Duplex. */
import type { Duplex } from 'node:stream';
import { PeerError, UsageError, XenMigrationError } from '../errors.js';
import { cancellation, peerLost, transportFailure } from '../transport/failure.js';
import { openConnection, type Connection } from '../transport/socket.js';
import type { ByteSink, ByteSource } from '../transport/types.js';
import {
  commonVersion,
  decodeFrame,
  decodeFrameHeader,
  decodePreamble,
  encodeFrame,
  encodePreamble,
  FRAME_HEADER_LENGTH,
  MAGIC,
  PREAMBLE_LENGTH,
  PROTOCOL_VERSIONS,
  protocolError,
  versionsText,
  type Frame,
  type PeerReason,
} from './frames.js';
import { describeForeign, FOREIGN_SAMPLE } from './foreign.js';
import { withLimit } from './limits.js';

/** ms that a farewell may take: a last frame out, and the peer's own end of the connection in. */
const FAREWELL = 3000;

/**
 * One end of a migration's connection: frames, and between READY and RESTORED the raw stream. The library's own protocol
 * is one form of it, that of xl another, which says the same things in other words.
 */
export interface MigrationWire {
  readonly protocol: 'xen-migration' | 'xl';
  /** The version that both ends speak; 0 until it is known. */
  readonly version: number;
  /** The peer has shown that it speaks the protocol, so that it can be told why this side fails. */
  readonly greeted: boolean;
  /** The raw directions, for the stream between the frames. */
  readonly source: ByteSource;
  readonly sink: ByteSink;
  /** True if the peer is known to be gone. False proves nothing. */
  readonly lost: boolean;
  /**
   * Resolves when the connection stands; a receiver has greeted then. Rejects with TransportError, PeerError, or the
   * signal's reason.
   */
  connected(signal: AbortSignal): Promise<void>;
  /** Sends a frame, the first one with the greeting before it if that has not been sent. */
  send(frame: Frame): Promise<void>;
  trySend(frame: Frame): Promise<boolean>;
  /**
   * Receives the next frame, before the first one the peer's greeting. Rejects with PeerError, also at the end of the
   * connection. One at a time.
   */
  receive(signal?: AbortSignal): Promise<Frame>;
  /** Ends the connection in good manners after a last frame. Takes a moment at most. */
  close(): Promise<void>;
  /** Cuts the connection: waits and writes reject with `reason`. */
  destroy(reason: unknown): void;
}

/** The library's own protocol. */
export class Wire implements MigrationWire {
  readonly protocol = 'xen-migration';
  version = 0;
  greeted = false;
  readonly #peer: Duplex;
  readonly #role: 'sender' | 'receiver';
  /** `the receiver` or `the sender`: who is at the other end. */
  readonly #who: string;
  readonly #connection: Connection;
  /** Our own preamble has been sent. */
  #opened = false;

  /** @param role Which end this is */
  constructor(peer: Duplex, role: 'sender' | 'receiver') {
    this.#peer = peer;
    this.#role = role;
    this.#who = otherEnd(role);
    this.#connection = openConnection(peer, { name: this.#who });
  }

  get source(): ByteSource {
    return this.#connection.source;
  }

  get sink(): ByteSink {
    return this.#connection.sink;
  }

  get lost(): boolean {
    return this.#peer.destroyed || this.#peer.readableEnded || !this.#peer.writable;
  }

  async connected(signal: AbortSignal): Promise<void> {
    await connected(this.#peer, this.#who, signal);
    if (this.#role === 'sender') return;
    // The sender knows by it with whom it talks, before it says anything itself.
    this.#opened = true;
    await this.sink.write([encodePreamble()]);
  }

  async send(frame: Frame): Promise<void> {
    const bytes = encodeFrame(frame);
    const views = this.#opened ? [bytes] : [Buffer.concat([encodePreamble(), bytes])];
    this.#opened = true;
    await this.sink.write(views);
  }

  /** Sends a frame if it can be sent within a moment. Whether that worked is told, never thrown. */
  async trySend(frame: Frame): Promise<boolean> {
    if (this.lost) return false;
    try {
      await withLimit('farewell', FAREWELL, 'sending the last frame', undefined, () => this.send(frame));
      return true;
    } catch {
      return false;
    }
  }

  /** Receives the peer's preamble. Whoever speaks something else is recognised if possible and named in the error. */
  async greet(signal?: AbortSignal): Promise<void> {
    if (this.greeted) return;
    const bytes = new Uint8Array(FOREIGN_SAMPLE);
    let length = 0;
    while (length < PREAMBLE_LENGTH) {
      const piece = await this.#take(PREAMBLE_LENGTH - length, signal);
      if (piece === undefined) {
        throw this.#closed(length === 0 ? 'without a word' : 'in the middle of its greeting');
      }
      bytes.set(piece, length);
      length += piece.length;
      if (!bytes.subarray(0, Math.min(length, MAGIC.length)).every((byte, i) => byte === MAGIC[i])) {
        const more = this.source.take(FOREIGN_SAMPLE - length);
        if (more !== undefined) bytes.set(more, length);
        length += more?.length ?? 0;
        throw protocolError(`${this.#who} ${describeForeign(bytes.subarray(0, length))}`);
      }
    }
    const preamble = decodePreamble(bytes);
    this.greeted = true;
    const version = commonVersion(preamble);
    if (version === undefined) {
      throw protocolError(
        `${this.#who} speaks version ${versionsText(preamble)} of the protocol, this side ${versionsText(PROTOCOL_VERSIONS)}`,
      );
    }
    this.version = version;
  }

  async receive(signal?: AbortSignal): Promise<Frame> {
    await this.greet(signal);
    const header = await this.#exactly(FRAME_HEADER_LENGTH, signal, 'instead of answering');
    const { type, length } = decodeFrameHeader(header);
    return decodeFrame(type, await this.#exactly(length, signal, 'in the middle of a frame'));
  }

  /** What the peer still sends is read and thrown away, so that our last frame is not lost to a reset. */
  async close(): Promise<void> {
    try {
      await withLimit('farewell', FAREWELL, 'the peer closed', undefined, async (signal) => {
        // Not waited for: two ends that say farewell at once would wait for each other.
        this.sink.end().catch(() => undefined);
        while (await this.source.wait(1, signal)) while (this.source.take(65536) !== undefined);
      });
    } catch {
      // The peer was quicker, or is in no hurry: either way nothing is left to be said.
    }
    this.destroy(this.#closed('by this side'));
  }

  destroy(reason: unknown): void {
    this.#connection.destroy(reason);
    void this.#connection.source.close();
    // Listeners are off by now; a late ECONNRESET must not end the process.
    this.#peer.on('error', () => undefined);
    this.#peer.destroy();
  }

  async #exactly(length: number, signal: AbortSignal | undefined, when: string): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    let at = 0;
    while (at < length) {
      const piece = await this.#take(length - at, signal);
      if (piece === undefined) throw this.#closed(at === 0 ? when : 'in the middle of a frame');
      bytes.set(piece, at);
      at += piece.length;
    }
    return bytes;
  }

  async #take(max: number, signal: AbortSignal | undefined): Promise<Uint8Array | undefined> {
    for (;;) {
      const piece = this.source.take(max);
      if (piece !== undefined) return piece;
      if (!(await this.source.wait(max, signal))) return undefined;
    }
  }

  #closed(how: string): PeerError {
    return new PeerError('ERR_XEN_PEER_LOST', `${this.#who} closed the connection ${how}`);
  }
}

/** `the receiver` to a sender, `the sender` to a receiver. */
export function otherEnd(role: 'sender' | 'receiver'): string {
  return role === 'sender' ? 'the receiver' : 'the sender';
}

/** Resolves when the Duplex is connected. Rejects with TransportError, PeerError, or the signal's reason. */
export async function connected(peer: Duplex, who: string, signal: AbortSignal): Promise<void> {
  if ((peer as Duplex & { connecting?: boolean }).connecting === true) {
    await new Promise<void>((resolve, reject) => {
      const done = (settle: () => void) => () => {
        peer.off('connect', onConnect).off('error', onError).off('close', onClose);
        signal.removeEventListener('abort', onAbort);
        settle();
      };
      const onConnect = done(resolve);
      const onClose = done(() => reject(peerLost(`connecting to ${who}`)));
      const onAbort = done(() => reject(cancellation(signal.reason, `connecting to ${who}`)));
      const onError = (error: Error): void =>
        done(() => reject(transportFailure(error, `connecting to ${who}`)))();
      peer.on('connect', onConnect).on('error', onError).on('close', onClose);
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }
  // Frames are small and somebody waits for each.
  const socket = peer as Duplex & { setNoDelay?: (on: boolean) => unknown };
  socket.setNoDelay?.(true);
}

/** The error for a peer that gave up and said why. */
export function peerFailure(who: string, verb: string, reason: PeerReason): PeerError {
  return new PeerError('ERR_XEN_PEER_REFUSED', `${who} ${verb}: ${reason.message} (${reason.code})`, {
    cause: new XenMigrationError(reason.code, reason.message),
  });
}

/** Throws UsageError unless the value can be a peer. */
export function checkPeer(peer: unknown, option: string): void {
  const duplex = peer as Partial<Duplex> | null | undefined;
  if (typeof duplex?.write !== 'function' || typeof duplex.pause !== 'function') {
    throw new UsageError(`${option} must be a Duplex, for instance a net.Socket`);
  }
}
