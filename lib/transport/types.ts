/** The two ends of a byte stream, as the algorithms see them. Adapters: file, socket, any Duplex, memory. */

/** Where a stream comes from. One reader at a time. */
export interface ByteSource {
  /**
   * Bytes that are here now: 1…max of them as a view, or undefined when none is at hand (then `wait`). Synchronous, so
   * that a record inside a chunk costs no promise. The view is valid until the next call of `take` or `wait`.
   */
  take(max: number): Uint8Array | undefined;
  /**
   * Waits until `take` can give something. Resolves to false at the end of the stream. `want` is how many bytes the
   * caller can use (≥ 1): a source that may not read ahead reads at most that many.
   * Rejects with TransportError, or with the signal's reason as CancelledError.
   */
  wait(want: number, signal?: AbortSignal): Promise<boolean>;
  /**
   * Reads right here and now, for no more than `want` bytes, if a wait would cost more than the read. True if `take` has
   * something then; else `wait`.
   */
  fetch?(want: number): boolean;
  /**
   * Reads straight into memory of the caller, where that saves a copy, when `take` has nothing: resolves to the bytes
   * read, fewer than `into` holds at the end of the stream. Undefined if it cannot be done now; then `wait`. Rejects as
   * `wait` does, but not before nothing is written to `into` any more. All of `into` must be bytes that the caller can use.
   */
  readInto?(into: Uint8Array, signal?: AbortSignal): Promise<number> | undefined;
  /**
   * Passes over up to `max` bytes without giving them out, where that is cheaper. Returns how many, 0 if none; what is
   * left is to be taken. Sources of files have it. Views given before are no longer valid. With `touch` the bytes are read
   * all the same, in the background and for nothing but to know that they can be: see `touched`.
   */
  skip?(max: number, touch?: boolean): number;
  /**
   * Waits until at most `limit` of the bytes that `skip` was to touch are still to be read. Rejects with TransportError
   * if some could not be. Of sources that have `skip`.
   */
  touched?(limit: number): Promise<void>;
  /** Bytes given out so far. */
  readonly position: number;
  /** Releases the source. Bytes not taken are lost. Idempotent. */
  close(): Promise<void>;
}

/** Where a stream goes. One writer at a time. */
export interface ByteSink {
  /**
   * Writes all bytes of the views, in order. Resolves once the memory behind the views may change again. The views may
   * lie in shared memory. A second write may be started before the first resolved; order is kept.
   * Rejects with TransportError; after `abort`, with its reason.
   */
  write(views: readonly Uint8Array[]): Promise<void>;
  /** Bytes accepted so far (their writes resolved). */
  readonly bytesWritten: number;
  /** All bytes on their way, nothing more comes; what that does to the file or socket is the adapter's. */
  end(): Promise<void>;
  /** Stops at once: pending writes reject with `reason`. Idempotent. */
  abort(reason: unknown): void;
}
