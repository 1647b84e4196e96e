/** What carries the messages: a socket of xenstored, or the kernel's xenbus device. */
import type { XenstoreError } from '../../errors.js';

/** What a link tells its owner. Never called before `start` nor after `close`. */
export interface LinkEvents {
  /** A piece of the incoming byte stream. Valid during the call alone. */
  readonly onBytes: (chunk: Uint8Array) => void;
  /** The link is gone. Comes once. */
  readonly onLost: (error: XenstoreError) => void;
}

/** One connection to xenstored. */
export interface XenstoreLink {
  /** For messages: the path of the socket or device. */
  readonly name: string;
  /**
   * True if only one request may be under way, and if the answers to XS_WATCH and XS_UNWATCH come with req_id 0: the
   * kernel makes these up by itself.
   */
  readonly serial: boolean;
  start(events: LinkEvents): void;
  /** Sends one whole message. Throws an XenstoreError if this message is refused; the link stays usable then. */
  send(message: Uint8Array): void;
  /** Idempotent. */
  close(): void;
}
