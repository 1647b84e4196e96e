/** The connection under xl's wire protocol: fixed messages over the two directions of a Duplex. */
import type { Duplex } from 'node:stream';
import { PeerError } from '../../errors.js';
import { openConnection, type Connection } from '../../transport/socket.js';
import type { ByteSink, ByteSource } from '../../transport/types.js';
import { knownForeign } from '../foreign.js';
import { protocolError } from '../frames.js';
import { withLimit } from '../limits.js';
import { connected, otherEnd } from '../wire.js';
import { isText, messageText, quoted, QUOTED_MAX, XL_MESSAGES, type XlMessage } from './messages.js';

/** ms that a farewell may take: a last message out, and the peer's own end of the connection in. */
const FAREWELL = 3000;

/** What both ends of xl's protocol do alike. */
export class XlLine {
  /** `the receiver` or `the sender`: who is at the other end. */
  readonly who: string;
  readonly #peer: Duplex;
  readonly #connection: Connection;

  /** @param role Which end this is */
  constructor(peer: Duplex, role: 'sender' | 'receiver') {
    this.#peer = peer;
    this.who = otherEnd(role);
    this.#connection = openConnection(peer, { name: this.who });
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

  connected(signal: AbortSignal): Promise<void> {
    return connected(this.#peer, this.who, signal);
  }

  /** Sends if it can be done within a moment. Whether that worked is told, never thrown. */
  async try(send: () => Promise<void>): Promise<boolean> {
    if (this.lost) return false;
    try {
      await withLimit('farewell', FAREWELL, 'sending the last message', undefined, send);
      return true;
    } catch {
      return false;
    }
  }

  /**
   * Receives one message, and not a byte beyond it. Whatever else comes is quoted in the PeerError.
   *
   * @param when Completes `the receiver closed the connection …`, for an end that comes instead
   */
  async expect(message: XlMessage, when: string, signal?: AbortSignal): Promise<void> {
    const due = XL_MESSAGES[message];
    let at = 0;
    while (at < due.length) {
      const piece = await this.#take(due.length - at, signal);
      if (piece === undefined)
        throw this.closed(at === 0 ? when : `in the middle of "${messageText(message)}"`);
      if (piece.some((byte, i) => byte !== due[at + i])) throw this.#garbage(message, at, piece);
      at += piece.length;
    }
  }

  /** Receives one byte. */
  async byte(when: string, signal?: AbortSignal): Promise<number> {
    const piece = await this.#take(1, signal);
    if (piece === undefined) throw this.closed(when);
    return piece[0] as number;
  }

  /** Waits for the end of the connection. Rejects with PeerError if anything else comes, or if it breaks. */
  async end(signal?: AbortSignal): Promise<void> {
    const piece = await this.#take(QUOTED_MAX, signal);
    if (piece === undefined) return;
    throw protocolError(`${this.who} sent ${quoted(piece)} after its last message`);
  }

  /** What the peer still sends is read and thrown away, so that our last message is not lost to a reset. */
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
    this.destroy(this.closed('by this side'));
  }

  destroy(reason: unknown): void {
    this.#connection.destroy(reason);
    void this.#connection.source.close();
    // Listeners are off by now; a late ECONNRESET must not end the process.
    this.#peer.on('error', () => undefined);
    this.#peer.destroy();
  }

  closed(how: string): PeerError {
    return new PeerError('ERR_XEN_PEER_LOST', `${this.who} closed the connection ${how}`);
  }

  /** The error for bytes that are not those of `message`, whose first `matched` had been right. */
  #garbage(message: XlMessage, matched: number, piece: Uint8Array): PeerError {
    const parts = [XL_MESSAGES[message].subarray(0, matched), Uint8Array.from(piece)];
    const more = this.source.take(QUOTED_MAX);
    if (more !== undefined) parts.push(more);
    const bytes = Buffer.concat(parts);
    if (message !== 'banner') {
      return protocolError(`${this.who} sent ${quoted(bytes)} where "${messageText(message)}" was due`);
    }
    const known = knownForeign(bytes);
    if (known !== undefined) return protocolError(`${this.who} ${known}`);
    const sent = `${this.who} sent ${quoted(bytes)} instead of the greeting of \`xl migrate-receive\``;
    if (!isText(bytes)) return protocolError(sent);
    return protocolError(
      `${sent}: something there (a login script, a message of the day, a wrapper around the command) prints to standard output, which must carry nothing but the migration`,
    );
  }

  async #take(max: number, signal: AbortSignal | undefined): Promise<Uint8Array | undefined> {
    for (;;) {
      const piece = this.source.take(max);
      if (piece !== undefined) return piece;
      if (!(await this.source.wait(max, signal))) return undefined;
    }
  }
}
