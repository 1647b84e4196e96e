/** What carries the messages: a socket of xenstored, or the kernel's xenbus device. */
import type { XenstoreError } from '../../errors.js';

/** Why a link did not take a message. */
export interface Refusal {
  /** Positive. */
  readonly errno: number;
  readonly why: string;
  readonly cause?: unknown;
}

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
   * True if the kernel stands between, which uses the same connection with xenstored for itself: one request may be under
   * way at a time, the answers to XS_WATCH and XS_UNWATCH come with req_id 0, for the kernel makes these up by itself, and
   * XS_RESET_WATCHES would end the kernel's own watches.
   */
  readonly kernel: boolean;
  start(events: LinkEvents): void;
  /** Sends one whole message. A refusal is of this message alone: the link stays usable. */
  send(message: Uint8Array): Refusal | undefined;
  /** Idempotent. */
  close(): void;
}
