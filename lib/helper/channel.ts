/** The two pipes to libxl: messages out, replies in, one request at a time. */
import { PeerError, TransportError } from '../errors.js';
import { REPLY_SIZE } from './protocol.js';

/** The ends of the pipes. */
export interface ChannelPort {
  /** Writes all of a frame before it returns. Throws if nobody reads. */
  write(frame: Uint8Array): void;
  /** Reads until `into` is full; resolves to less at the end. */
  read(into: Uint8Array): Promise<number>;
}

/**
 * Strictly synchronous, as libxl is: a request is a frame and then a wait for four bytes, and the next one waits for
 * its turn. Frames without a reply may be sent meanwhile.
 */
export class Channel {
  readonly #port: ChannelPort;
  /** Settles when the last request so far is over; never rejects. */
  #turn: Promise<unknown> = Promise.resolve();
  #lost: PeerError | undefined;
  /** Called, once, when libxl is found to be gone. */
  onLost: (error: PeerError) => void = () => undefined;

  constructor(port: ChannelPort) {
    this.#port = port;
  }

  /** Why nothing can be said to libxl any more. */
  get lost(): PeerError | undefined {
    return this.#lost;
  }

  /** Sends a message that has no reply. Without libxl it goes nowhere: `onLost` says so. */
  send(frame: Uint8Array): void {
    if (this.#lost !== undefined) return;
    try {
      this.#port.write(frame);
    } catch (cause) {
      this.#lose(cause);
    }
  }

  /** Sends a message and waits for its reply. Rejects with PeerError when libxl is gone. */
  request(frame: Uint8Array): Promise<number> {
    const reply = this.#turn.then(() => this.#exchange(frame));
    this.#turn = reply.catch(() => undefined);
    return reply;
  }

  async #exchange(frame: Uint8Array): Promise<number> {
    this.send(frame);
    if (this.#lost !== undefined) throw this.#lost;
    const bytes = new Uint8Array(REPLY_SIZE);
    let n: number;
    try {
      n = await this.#port.read(bytes);
      if (n < REPLY_SIZE) throw new TransportError(`the pipe ended after ${n} of ${REPLY_SIZE} bytes`);
    } catch (cause) {
      throw this.#lose(cause);
    }
    return new DataView(bytes.buffer).getInt32(0, true);
  }

  #lose(cause: unknown): PeerError {
    if (this.#lost !== undefined) return this.#lost;
    const why = cause instanceof Error ? cause.message : String(cause);
    this.#lost = new PeerError('ERR_XEN_PEER_LOST', `libxl is gone: ${why}`, { cause });
    this.onLost(this.#lost);
    return this.#lost;
  }
}
