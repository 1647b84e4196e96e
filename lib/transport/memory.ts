/** Streams in memory: for bytes that are there already, and for tests. */

import { CancelledError, TransportError } from '../errors.js';
import { cancellation } from './failure.js';
import type { ByteSink, ByteSource } from './types.js';

/** Gives out bytes that are there already. */
export class MemorySource implements ByteSource {
  readonly #pieces: readonly Uint8Array[];
  #piece = 0;
  #at = 0;
  #position = 0;

  /** @param bytes The bytes, or pieces of them, which `take` never joins. Shared, not copied. */
  constructor(bytes: Uint8Array | readonly Uint8Array[]) {
    this.#pieces = bytes instanceof Uint8Array ? [bytes] : bytes;
  }

  get position(): number {
    return this.#position;
  }

  take(max: number): Uint8Array | undefined {
    for (;;) {
      const piece = this.#pieces[this.#piece];
      if (piece === undefined) return undefined;
      const left = piece.length - this.#at;
      if (left > 0) {
        const n = Math.min(left, max);
        const view = piece.subarray(this.#at, this.#at + n);
        this.#at += n;
        this.#position += n;
        return view;
      }
      this.#piece++;
      this.#at = 0;
    }
  }

  async wait(_want: number, signal?: AbortSignal): Promise<boolean> {
    if (signal?.aborted === true) throw cancellation(signal.reason, 'reading memory');
    for (let i = this.#piece, at = this.#at; i < this.#pieces.length; i++, at = 0) {
      if ((this.#pieces[i] as Uint8Array).length > at) return true;
    }
    return false;
  }

  async close(): Promise<void> {
    this.#piece = this.#pieces.length;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Collects what is written, as copies. */
export class MemorySink implements ByteSink {
  readonly #limit: number;
  #bytes = new Uint8Array(0);
  #length = 0;
  #ended = false;
  #aborted: { reason: unknown } | undefined;

  /** @param options.limit Most bytes that it takes; a write beyond fails as a full disk does. Default: no limit. */
  constructor(options: { limit?: number } = {}) {
    this.#limit = options.limit ?? Infinity;
  }

  get bytesWritten(): number {
    return this.#length;
  }

  /** True after `end`. */
  get ended(): boolean {
    return this.#ended;
  }

  /** What was written so far: a view, valid until the next write. */
  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  async write(views: readonly Uint8Array[]): Promise<void> {
    if (this.#aborted !== undefined) throw this.#aborted.reason;
    if (this.#ended) throw new TransportError('writing memory: write after end');
    let need = this.#length;
    for (const view of views) need += view.length;
    if (need > this.#limit) throw new TransportError(`writing memory: no room beyond ${this.#limit} bytes`);
    if (need > this.#bytes.length) {
      const bigger = new Uint8Array(Math.max(need, this.#bytes.length * 2));
      bigger.set(this.bytes);
      this.#bytes = bigger;
    }
    for (const view of views) {
      this.#bytes.set(view, this.#length);
      this.#length += view.length;
    }
  }

  async end(): Promise<void> {
    if (this.#aborted !== undefined) throw this.#aborted.reason;
    this.#ended = true;
  }

  abort(reason: unknown): void {
    this.#aborted ??= { reason: reason ?? new CancelledError('writing memory: aborted') };
  }
}
