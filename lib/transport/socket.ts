/**
 * Sockets, pipes, TLS and any other Node stream as sources and sinks.
 *
 * An error that a stream emits while nobody waits is kept for the next `wait` or `write`: it never becomes an
 * unhandled 'error' event.
 */

import * as fs from 'node:fs';
import * as net from 'node:net';
import type { Duplex, Readable, Writable } from 'node:stream';
import { CancelledError, TransportError, UsageError } from '../errors.js';
import { peerLost, transportFailure } from './failure.js';
import type { ByteSink, ByteSource } from './types.js';
import { Waiter } from './waiter.js';

/** Bytes that may wait for `take` before the stream is paused. */
export const SOCKET_HIGH_WATER = 1024 * 1024;

/** A late error of a stream that was given up. */
const ignore = (): void => undefined;

export interface SocketSourceOptions {
  /** For messages. Default `the peer`. */
  name?: string | undefined;
  /** Pause the stream when so many bytes wait for `take`. Default 1 MiB. */
  highWaterMark?: number | undefined;
  /**
   * What `close` does: `destroy` the stream (default), or `detach`: take the listeners off, give bytes that were not
   * taken back to the stream with `unshift` and leave it paused. Errors are the owner's from then on.
   */
  onClose?: 'destroy' | 'detach' | undefined;
}

/** Reads any Readable by its 'data' events, which is the fastest way that Node has for sockets and pipes. */
export class SocketSource implements ByteSource {
  readonly #stream: Readable;
  readonly #doing: string;
  readonly #highWaterMark: number;
  readonly #onClose: 'destroy' | 'detach';
  readonly #waiter: Waiter;
  /** Chunks that came and were not taken whole; `#at` is the place in the first. */
  #chunks: Uint8Array[] = [];
  #at = 0;
  #queued = 0;
  #flowing = false;
  #ended = false;
  #failure: unknown;
  #position = 0;
  #closed = false;

  constructor(stream: Readable, options: SocketSourceOptions = {}) {
    if (stream.readableEncoding !== null)
      throw new UsageError('a stream of text cannot be a source of bytes');
    this.#stream = stream;
    this.#doing = `reading ${options.name ?? 'the peer'}`;
    this.#highWaterMark = options.highWaterMark ?? SOCKET_HIGH_WATER;
    this.#onClose = options.onClose ?? 'destroy';
    this.#waiter = new Waiter(this.#doing);
    // Paused on purpose before the 'data' listener comes, so that nothing flows until the first wait.
    stream.pause();
    stream.on('data', this.#onData);
    stream.on('end', this.#onEnd);
    stream.on('error', this.#onError);
    stream.on('close', this.#onStreamClose);
    if (stream.errored) this.#onError(stream.errored);
    else if (stream.readableEnded) this.#ended = true;
    else if (stream.destroyed || !stream.readable) this.#onStreamClose();
  }

  get position(): number {
    return this.#position;
  }

  take(max: number): Uint8Array | undefined {
    const chunk = this.#chunks[0];
    if (chunk === undefined) return undefined;
    const left = chunk.length - this.#at;
    let view: Uint8Array;
    if (left <= max) {
      view = this.#at === 0 ? chunk : chunk.subarray(this.#at);
      this.#chunks.shift();
      this.#at = 0;
    } else {
      view = chunk.subarray(this.#at, this.#at + max);
      this.#at += max;
    }
    this.#queued -= view.length;
    this.#position += view.length;
    return view;
  }

  wait(_want: number, signal?: AbortSignal): Promise<boolean> {
    const waiting = this.#waiter.begin(signal);
    // begin() refused: the signal is aborted already, or another wait is outstanding.
    if (!this.#waiter.waiting) return waiting;
    if (this.#closed) this.#waiter.fail(new TransportError(`${this.#doing}: the source is closed`));
    else if (this.#chunks.length > 0) this.#waiter.wake(true);
    else if (this.#failure !== undefined) this.#waiter.fail(this.#failure);
    else if (this.#ended) this.#waiter.wake(false);
    else if (!this.#flowing) {
      this.#flowing = true;
      this.#stream.resume();
    }
    return waiting;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#waiter.fail(new TransportError(`${this.#doing}: the source was closed`));
    this.#waiter.stop();
    const stream = this.#stream;
    stream.pause();
    stream.off('data', this.#onData);
    stream.off('end', this.#onEnd);
    stream.off('close', this.#onStreamClose);
    const rest = this.#chunks;
    this.#chunks = [];
    if (this.#onClose === 'destroy') {
      stream.on('error', ignore);
      stream.destroy();
    } else if (!stream.destroyed && !this.#ended) {
      if (this.#at > 0) rest[0] = (rest[0] as Uint8Array).subarray(this.#at);
      for (const chunk of rest.reverse()) stream.unshift(chunk);
    }
    stream.off('error', this.#onError);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  readonly #onData = (chunk: unknown): void => {
    if (!(chunk instanceof Uint8Array)) {
      this.#onError(new TypeError('the stream gave something else than bytes'));
      this.#stream.destroy();
      return;
    }
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#queued += chunk.length;
    if (this.#queued >= this.#highWaterMark) {
      this.#flowing = false;
      this.#stream.pause();
    }
    this.#waiter.wake(true);
  };

  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#waiter.wake(false);
  };

  readonly #onError = (error: unknown): void => {
    this.#failure ??= transportFailure(error, this.#doing);
    this.#waiter.fail(this.#failure);
  };

  /** 'close' without 'end' or 'error': the stream was destroyed, or its peer vanished. */
  readonly #onStreamClose = (): void => {
    if (this.#ended) return;
    this.#failure ??= peerLost(this.#doing);
    this.#waiter.fail(this.#failure);
  };
}

export interface SocketSinkOptions {
  /** For messages. Default `the peer`. */
  name?: string | undefined;
  /**
   * Write copies of the views. Default: false for streams that are known to be done with the memory when they call
   * back (net.Socket, tls.TLSSocket, fs.WriteStream), true for all others, which may keep what they were given.
   */
  copy?: boolean | undefined;
  /** Whether `end` ends the stream (for a socket: half-closes it). Default true. */
  autoEnd?: boolean | undefined;
}

interface PendingWrite {
  readonly bytes: number;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Writes to any Writable. Fast when given few large views; views that lie side by side in memory become one.
 *
 * `abort` and a failure destroy the stream; a write under way rejects when the stream is done with its memory.
 */
export class SocketSink implements ByteSink {
  readonly #stream: Writable;
  readonly #doing: string;
  readonly #copy: boolean;
  readonly #autoEnd: boolean;
  /** In the order of `write`. */
  readonly #pending = new Set<PendingWrite>();
  #failed: { reason: unknown } | undefined;
  #bytesWritten = 0;
  #ended: Promise<void> | undefined;
  #onEnded: { resolve: () => void; reject: (error: unknown) => void } | undefined;

  constructor(stream: Writable, options: SocketSinkOptions = {}) {
    if (stream.writableObjectMode) throw new UsageError('a stream of objects cannot be a sink of bytes');
    this.#stream = stream;
    this.#doing = `writing to ${options.name ?? 'the peer'}`;
    this.#copy = options.copy ?? !(stream instanceof net.Socket || stream instanceof fs.WriteStream);
    this.#autoEnd = options.autoEnd ?? true;
    stream.on('error', this.#onError);
    stream.on('close', this.#onClose);
    if (stream.errored) this.#failed = { reason: transportFailure(stream.errored, this.#doing) };
    else if (stream.destroyed || !stream.writable) this.#failed = { reason: peerLost(this.#doing) };
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  write(views: readonly Uint8Array[]): Promise<void> {
    if (this.#failed !== undefined) return rejected(this.#failed.reason);
    if (this.#ended !== undefined) return rejected(new TransportError(`${this.#doing}: write after end`));
    const pieces = this.#copy ? [Buffer.concat(views)] : joinNeighbours(views);
    let bytes = 0;
    for (const piece of pieces) bytes += piece.length;
    if (bytes === 0) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const pending = { bytes, resolve, reject };
      this.#pending.add(pending);
      const last = pieces.length - 1;
      if (last > 0) this.#stream.cork();
      for (let i = 0; i < last; i++) this.#stream.write(pieces[i], ignore);
      this.#stream.write(pieces[last], (error) => this.#onWritten(pending, error));
      if (last > 0) this.#stream.uncork();
    });
  }

  end(): Promise<void> {
    this.#ended ??= this.#end();
    return this.#ended;
  }

  abort(reason: unknown): void {
    if (this.#failed === undefined)
      this.#failed = { reason: reason ?? new CancelledError(`${this.#doing}: aborted`) };
    this.#giveUp();
  }

  /**
   * Takes the sink's listeners off a stream that goes on in other hands. For a sink whose writes have all resolved;
   * a later write rejects.
   */
  detach(): void {
    this.#failed ??= { reason: new TransportError(`${this.#doing}: the sink was detached`) };
    this.#stream.off('error', this.#onError);
    this.#stream.off('close', this.#onClose);
  }

  #end(): Promise<void> {
    if (this.#failed !== undefined) return rejected(this.#failed.reason);
    return new Promise((resolve, reject) => {
      this.#onEnded = { resolve, reject };
      if (this.#autoEnd) this.#stream.end(() => this.#finish());
      else if (this.#pending.size === 0) this.#finish();
    });
  }

  #finish(): void {
    // After an error the callback of `end` comes too; a destroyed stream may even call it without one.
    if (this.#failed !== undefined || this.#pending.size > 0) return;
    this.#onEnded?.resolve();
    this.#onEnded = undefined;
  }

  /** A write callback without an error proves nothing once the stream is destroyed. */
  #onWritten(pending: PendingWrite, error: Error | null | undefined): void {
    if (!this.#pending.delete(pending)) return;
    if (error) this.#failed ??= { reason: transportFailure(error, this.#doing) };
    else if (this.#stream.destroyed) this.#failed ??= { reason: peerLost(this.#doing) };
    if (this.#failed !== undefined) {
      pending.reject(this.#failed.reason);
      this.#giveUp();
      return;
    }
    this.#bytesWritten += pending.bytes;
    pending.resolve();
    if (!this.#autoEnd && this.#pending.size === 0) this.#finish();
  }

  /** Destroys the stream and settles what can be settled now. The rest follows with the callbacks or with 'close'. */
  #giveUp(): void {
    this.#stream.destroy();
    if (this.#copy || this.#stream.closed) this.#rejectAll();
    const failed = this.#failed as { reason: unknown };
    this.#onEnded?.reject(failed.reason);
    this.#onEnded = undefined;
  }

  #rejectAll(): void {
    const failed = this.#failed as { reason: unknown };
    for (const pending of this.#pending) pending.reject(failed.reason);
    this.#pending.clear();
  }

  readonly #onError = (error: unknown): void => {
    this.#failed ??= { reason: transportFailure(error, this.#doing) };
    this.#giveUp();
  };

  readonly #onClose = (): void => {
    // A stream that closes by itself after `end` has called back before.
    if (this.#failed === undefined && this.#pending.size === 0 && this.#stream.writableFinished) {
      this.#finish();
      return;
    }
    this.#failed ??= { reason: peerLost(this.#doing) };
    this.#rejectAll();
    this.#onEnded?.reject(this.#failed.reason);
    this.#onEnded = undefined;
  };
}

function rejected(reason: unknown): Promise<never> {
  // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason, as it is
  return Promise.reject(reason);
}

/** Views that lie side by side in one buffer become one view; empty ones go. */
function joinNeighbours(views: readonly Uint8Array[]): Uint8Array[] {
  const joined: Uint8Array[] = [];
  let run: Uint8Array | undefined;
  let length = 0;
  const close = (): void => {
    if (run === undefined) return;
    joined.push(run.length === length ? run : new Uint8Array(run.buffer, run.byteOffset, length));
  };
  for (const view of views) {
    if (view.length === 0) continue;
    if (run !== undefined && view.buffer === run.buffer && view.byteOffset === run.byteOffset + length) {
      length += view.length;
      continue;
    }
    close();
    run = view;
    length = view.length;
  }
  close();
  return joined;
}

/** Both directions of one connection. */
export interface Connection {
  readonly source: ByteSource;
  readonly sink: ByteSink;
  /** Destroys the connection; waits and writes reject with `reason`. Idempotent. */
  destroy(reason: unknown): void;
}

/**
 * Both directions of a Duplex. Closing the source leaves the sink working, and ending the sink half-closes.
 *
 * @param stream A net.Socket, tls.TLSSocket or any other Duplex; owned from now on. For a connection whose directions
 *   end one after the other it must have been made with `allowHalfOpen: true`.
 */
export function openConnection(stream: Duplex, options: { name?: string | undefined } = {}): Connection {
  const source = new SocketSource(stream, { ...options, onClose: 'detach' });
  const sink = new SocketSink(stream, options);
  return {
    source,
    sink,
    destroy: (reason) => {
      sink.abort(reason);
    },
  };
}
