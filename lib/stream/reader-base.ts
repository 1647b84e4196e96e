/** What all incremental readers have in common: position, end, and that an error is final. */

import { UsageError, type StreamFormatError } from '../errors.js';
import { formatError, StreamErrorCode } from './codes.js';
import type { IncrementalReader, StreamEvent } from './events.js';

/** Options of all incremental readers. */
export interface ReaderOptions {
  /** Hands on what a strict reader refuses, with the error in the event's `violation`. See events.ts. */
  readonly lenient?: boolean | undefined;
  /** Offset in the stream of the first byte that will be fed. Default 0. */
  readonly offset?: number | undefined;
}

export abstract class ReaderBase implements IncrementalReader {
  protected readonly lenient: boolean;
  #position: number;
  #error: unknown;

  constructor(options: ReaderOptions) {
    this.lenient = options.lenient ?? false;
    this.#position = options.offset ?? 0;
  }

  abstract get want(): number;
  abstract get done(): boolean;
  abstract get atBoundary(): boolean;

  /** Takes 1…want bytes; `position` is still that of the first of them. */
  protected abstract step(bytes: Uint8Array): StreamEvent | undefined;

  /** What was being read, for the error of a stream that ends: a header's or record's name. */
  protected abstract get reading(): string | undefined;

  get ahead(): number {
    return this.want;
  }

  get position(): number {
    return this.#position;
  }

  feed(bytes: Uint8Array): StreamEvent | undefined {
    this.#check();
    if (bytes.length < 1 || bytes.length > this.want) {
      const takes = this.done ? 'takes nothing: the stream is complete' : `takes 1 to ${this.want} bytes now`;
      throw new UsageError(`feed ${takes}, got ${bytes.length}`);
    }
    try {
      const event = this.step(bytes);
      this.#position += bytes.length;
      return event;
    } catch (error) {
      this.#error = error;
      throw error;
    }
  }

  end(): StreamEvent | undefined {
    this.#check();
    if (this.done) return undefined;
    try {
      const event = this.last();
      // Not as it was a moment ago: `last` may have seen that the stream is whole.
      if (this.done as boolean) return event;
      throw this.endError();
    } catch (error) {
      this.#error = error;
      throw error;
    }
  }

  /** For formats whose end is the end of the bytes: becomes `done` if the stream is whole. Its last event, if that is one. */
  protected last(): StreamEvent | undefined {
    return undefined;
  }

  /** The error of a stream that ends here. */
  protected endError(): StreamFormatError {
    const reading = this.reading;
    const reason = this.atBoundary
      ? 'the stream ends without its END record'
      : `the stream ends ${this.missing()} short`;
    return formatError(StreamErrorCode.TRUNCATED, reason, { offset: this.#position, record: reading });
  }

  /** Moves on to where this reader's part of the stream goes on, after bytes that others have read. */
  protected moveTo(position: number): void {
    this.#position = position;
  }

  /** Hands an error to a lenient reader's event, or throws it. */
  protected violation(error: StreamFormatError | undefined): StreamFormatError | undefined {
    if (error !== undefined && !this.lenient) throw error;
    return error;
  }

  protected missing(): string {
    return `${this.want} ${this.want === 1 ? 'byte' : 'bytes'}`;
  }

  #check(): void {
    if (this.#error !== undefined) throw this.#error as StreamFormatError;
  }
}
