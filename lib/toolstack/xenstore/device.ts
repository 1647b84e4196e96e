/**
 * The link over the kernel's xenbus device (/dev/xen/xenbus), for hosts whose xenstored has no socket here: it runs in
 * a domain of its own.
 *
 * A character device cannot be a net.Socket, and a read that blocks would hold a thread of libuv's pool for ever. So the
 * descriptor is non-blocking, and somebody else says when there is something to read.
 */
import * as fs from 'node:fs';
import { Errno, errnoName } from '../../abi/errno.js';
import { connectionLost } from './socket.js';
import type { LinkEvents, Refusal, XenstoreLink } from './link.js';
import { XENSTORE_HEADER_SIZE, XENSTORE_PAYLOAD_MAX } from './wire.js';

/** A watched descriptor. */
export interface ReadableWatch {
  /** Watches for the next readiness. A callback disarms the watch. */
  rearm(): void;
  /** Ends the watch; no callback comes after it returns, and the descriptor may be closed. Idempotent. */
  close(): void;
}

/** Tells when a descriptor that libuv does not know can be read. The native addon has one. */
export interface FdWatch {
  /**
   * Calls `onReadable` on the event loop once `fd` can be read or has failed. Begins armed. The descriptor stays the
   * caller's.
   *
   * @param keepAlive Whether the watch keeps the process running, as a socket does
   */
  watchReadable(fd: number, onReadable: () => void, keepAlive: boolean): ReadableWatch;
}

/** Bytes of a message, header included, that the kernel has room for: 16 fewer than xenstored. */
const XENBUS_MESSAGE_MAX = 4096;

/** Reads per readiness, so that a stream of events cannot hold the event loop. */
const READS_PER_TURN = 16;

class DeviceLink implements XenstoreLink {
  readonly name: string;
  readonly kernel = true;
  readonly #fd: number;
  readonly #fdWatch: FdWatch;
  readonly #buffer = new Uint8Array(XENSTORE_HEADER_SIZE + XENSTORE_PAYLOAD_MAX);
  #watch: ReadableWatch | undefined;
  #events: LinkEvents | undefined;
  #closed = false;

  constructor(fd: number, path: string, fdWatch: FdWatch) {
    this.#fd = fd;
    this.name = path;
    this.#fdWatch = fdWatch;
  }

  start(events: LinkEvents): void {
    this.#events = events;
    this.#watch = this.#fdWatch.watchReadable(this.#fd, this.#onReadable, true);
  }

  /**
   * The kernel takes a message by one write, whole: what follows it in the same write is dropped. It answers an
   * ill-formed request by failing the write.
   */
  send(message: Uint8Array): Refusal | undefined {
    if (message.length > XENBUS_MESSAGE_MAX) {
      const why = `${this.name} takes messages of at most ${XENBUS_MESSAGE_MAX} bytes with their header`;
      return { errno: Errno.E2BIG, why };
    }
    let written: number;
    try {
      written = fs.writeSync(this.#fd, message);
    } catch (cause) {
      const errno = errnoOf(cause);
      return { errno, why: `${this.name} refused it with ${errnoName(errno)}`, cause };
    }
    if (written === message.length) return undefined;
    return { errno: Errno.EIO, why: `${this.name} took ${written} of ${message.length} bytes` };
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#events = undefined;
    this.#watch?.close();
    fs.closeSync(this.#fd);
  }

  readonly #onReadable = (): void => {
    for (let i = 0; i < READS_PER_TURN; i++) {
      if (this.#events === undefined) return;
      let length: number;
      try {
        length = fs.readSync(this.#fd, this.#buffer);
      } catch (error) {
        if (errnoOf(error) === Errno.EAGAIN) break;
        this.#lost(error);
        return;
      }
      if (length === 0) {
        this.#lost(undefined);
        return;
      }
      this.#events.onBytes(this.#buffer.subarray(0, length));
    }
    if (!this.#closed) this.#watch?.rearm();
  };

  #lost(cause: unknown): void {
    const events = this.#events;
    this.#events = undefined;
    events?.onLost(connectionLost(this.name, cause));
  }
}

/** Positive errno of one of Node's errors. EIO if it has none. */
function errnoOf(error: unknown): number {
  const errno = (error as { errno?: unknown } | null)?.errno;
  return typeof errno === 'number' ? Math.abs(errno) : Errno.EIO;
}

/**
 * Opens the device.
 *
 * @returns a link that has not been started
 * @throws Node's error if it cannot be opened
 */
export function openDevice(path: string, fdWatch: FdWatch): XenstoreLink {
  const { O_RDWR, O_NONBLOCK, O_NOCTTY } = fs.constants;
  return new DeviceLink(fs.openSync(path, O_RDWR | O_NONBLOCK | O_NOCTTY), path, fdWatch);
}
