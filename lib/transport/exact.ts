/** Pipes and sockets that somebody else goes on reading. */

import * as fs from 'node:fs';
import * as net from 'node:net';
import { TransportError } from '../errors.js';
import { peerLost, transportFailure } from './failure.js';
import type { ByteSource } from './types.js';
import { Waiter } from './waiter.js';

/** Most bytes of one read. */
const EXACT_CHUNK = 1024 * 1024;

/** A late error of a stream that was given up. */
const ignore = (): void => undefined;

/**
 * Reads a pipe or socket and never takes a byte out of it that the caller did not ask for, so that whoever shares it finds
 * it where the stream ended. Needs no thread that blocks: a wait ends by its signal at once, with nothing read.
 *
 * Node reads as much as its buffer holds. The buffer is one byte, which tells that there is something; the rest of what is
 * wanted, as far as it is there, is read directly, the descriptor being non-blocking.
 */
export class ExactSource implements ByteSource {
  readonly #fd: number;
  readonly #doing: string;
  readonly #socket: net.Socket;
  readonly #waiter: Waiter;
  readonly #first = new Uint8Array(1);
  readonly #buffer = new Uint8Array(EXACT_CHUNK);
  /** Bytes that may be taken are `#buffer[#from, #to)`. */
  #from = 0;
  #to = 0;
  /** Bytes that the present wait can use. */
  #want = 0;
  #signal: AbortSignal | undefined;
  #ended = false;
  #failure: unknown;
  #position = 0;
  #closed = false;

  /**
   * @param fd A pipe or socket that can be read; given away. It becomes non-blocking, also for others that share its open
   *   file description: `openExactSource` avoids that for pipes
   */
  constructor(fd: number, { name = `fd ${fd}` }: { readonly name?: string | undefined } = {}) {
    this.#fd = fd;
    this.#doing = `reading ${name}`;
    this.#waiter = new Waiter(this.#doing);
    // Types of Node know `onread` of sockets that connect alone.
    const options: net.SocketConstructorOpts & Pick<net.TcpSocketConnectOpts, 'onread'> = {
      fd,
      readable: true,
      writable: false,
      onread: { buffer: this.#first, callback: () => this.#onByte() },
    };
    try {
      this.#socket = new net.Socket(options);
    } catch (error) {
      throw transportFailure(error, this.#doing);
    }
    // It would begin to read by itself.
    this.#socket.pause();
    this.#socket.on('end', this.#onEnd);
    this.#socket.on('error', this.#onError);
    this.#socket.on('close', this.#onClose);
  }

  get position(): number {
    return this.#position;
  }

  take(max: number): Uint8Array | undefined {
    const from = this.#from;
    if (from === this.#to) return undefined;
    const to = Math.min(this.#to, from + max);
    this.#from = to;
    this.#position += to - from;
    return this.#buffer.subarray(from, to);
  }

  wait(want: number, signal?: AbortSignal): Promise<boolean> {
    const waiting = this.#waiter.begin(signal);
    // begin() refused: the signal is aborted already, or another wait is outstanding.
    if (!this.#waiter.waiting) return waiting;
    if (this.#closed) this.#waiter.fail(new TransportError(`${this.#doing}: the source is closed`));
    else if (this.#from < this.#to) this.#waiter.wake(true);
    else if (this.#failure !== undefined) this.#waiter.fail(this.#failure);
    else if (this.#ended) this.#waiter.wake(false);
    else {
      this.#listen(signal);
      this.#want = Math.min(want, this.#buffer.length);
      this.#socket.resume();
    }
    return waiting;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#from = this.#to = 0;
    this.#listen(undefined);
    this.#waiter.fail(new TransportError(`${this.#doing}: the source was closed`));
    this.#waiter.stop();
    const socket = this.#socket;
    socket.off('end', this.#onEnd);
    socket.off('close', this.#onClose);
    socket.on('error', ignore);
    socket.off('error', this.#onError);
    socket.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Who gives up waiting wants nothing read any more. */
  #listen(signal: AbortSignal | undefined): void {
    if (signal === this.#signal) return;
    this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#signal = signal;
    signal?.addEventListener('abort', this.#onAbort);
  }

  readonly #onAbort = (): void => {
    this.#socket.pause();
  };

  /** There is something, and its first byte has been read. False: no more by itself. */
  #onByte(): boolean {
    const buffer = this.#buffer;
    buffer[0] = this.#first[0] as number;
    this.#from = 0;
    this.#to = 1;
    if (this.#want > 1) {
      try {
        this.#to += fs.readSync(this.#fd, buffer, 1, this.#want - 1, null);
      } catch (error) {
        // Whatever else it is, the next wait will meet it too.
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') {
          this.#failure ??= transportFailure(error, this.#doing);
        }
      }
    }
    this.#socket.pause();
    this.#waiter.wake(true);
    return false;
  }

  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#waiter.wake(false);
  };

  readonly #onError = (error: unknown): void => {
    this.#failure ??= transportFailure(error, this.#doing);
    this.#waiter.fail(this.#failure);
  };

  readonly #onClose = (): void => {
    if (this.#ended) return;
    this.#failure ??= peerLost(this.#doing);
    this.#waiter.fail(this.#failure);
  };
}

/**
 * Opens a source that reads exactly, of a pipe or socket. A pipe is opened anew, so that the descriptor of the others that
 * share it stays as it is.
 *
 * @param fd Given away
 * @throws TransportError for what is neither pipe nor socket
 */
export function openExactSource(
  fd: number,
  options: { readonly name?: string | undefined } = {},
): ExactSource {
  const { name = `fd ${fd}` } = options;
  let own: number;
  try {
    if (!fs.fstatSync(fd).isFIFO()) return new ExactSource(fd, { name });
    const { O_RDONLY, O_NONBLOCK } = fs.constants;
    own = fs.openSync(`/proc/self/fd/${fd}`, O_RDONLY | O_NONBLOCK);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // Somebody else's pipe, or no /proc: then as it is.
    if (code === 'EACCES' || code === 'ENOENT') return new ExactSource(fd, { name });
    throw transportFailure(error, `reading ${name}`);
  }
  fs.closeSync(fd);
  return new ExactSource(own, { name });
}
