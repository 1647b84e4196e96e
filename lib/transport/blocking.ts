/**
 * A descriptor that is shared with another process, as source and sink: blocking I/O on a thread of the addon. The
 * descriptor is never made non-blocking, never read beyond what was asked for, and never closed.
 */
import { CancelledError, TransportError } from '../errors.js';
import { cancellation, transportFailure } from './failure.js';
import type { ByteSink, ByteSource } from './types.js';
import { Waiter } from './waiter.js';

/** What the two need of the addon's BlockingFd (lib/host/xen/native.ts). */
export interface BlockingFd {
  /** Writes all bytes of all views. */
  write(views: readonly Uint8Array[]): Promise<void>;
  /** Reads until `into` is full or the stream has ended; resolves to the bytes read. */
  read(into: Uint8Array): Promise<number>;
  /**
   * Reads once, on the thread that calls: blocks it until there is something. The bytes read, 0 at the end of the
   * stream, −1 if the descriptor is non-blocking and has nothing. Not while a `read` is under way.
   */
  readNow(into: Uint8Array): number;
  /** Makes a blocked operation, and all later ones, fail; with `spoil` the stream is out of this process's reach for good. */
  interrupt(spoil: boolean): void;
  /** Ends its thread. The descriptor stays open. */
  close(): void;
}

export interface BlockingOptions {
  /** For messages. Default `the stream`. */
  readonly name?: string | undefined;
}

export interface BlockingSourceOptions extends BlockingOptions {
  /**
   * Reads of up to 64 KiB may block the thread that asks: the way to another thread and back takes longer than they do.
   * For a process that has nothing else to do meanwhile.
   */
  readonly shortReadsBlock?: boolean | undefined;
}

/** Bytes of one read: one such buffer is filled while the other is used. */
export const BLOCKING_CHUNK = 1024 * 1024;

/** Bytes of what is called a short read. */
const SHORT_READ = 64 * 1024;

/**
 * Reads exactly what `wait` is told that the caller can use. Within that, the next piece is read while the present one
 * is used: the bytes are the caller's anyway.
 */
export class BlockingSource implements ByteSource {
  readonly #fd: BlockingFd;
  readonly #doing: string;
  readonly #waiter: Waiter;
  readonly #shortReadsBlock: boolean;
  #current = new Uint8Array(BLOCKING_CHUNK);
  #other = new Uint8Array(BLOCKING_CHUNK);
  #from = 0;
  #to = 0;
  /** Bytes beyond the read under way that the caller said to want. */
  #credit = 0;
  /** A read into `#other` is under way. */
  #reading = false;
  #arrived = 0;
  #ended = false;
  #failure: unknown;
  #position = 0;
  #closed = false;

  constructor(fd: BlockingFd, options: BlockingSourceOptions = {}) {
    this.#fd = fd;
    this.#doing = `reading ${options.name ?? 'the stream'}`;
    this.#shortReadsBlock = options.shortReadsBlock ?? false;
    this.#waiter = new Waiter(this.#doing);
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
    return this.#current.subarray(from, to);
  }

  wait(want: number, signal?: AbortSignal): Promise<boolean> {
    if (this.#closed) return Promise.reject(new TransportError(`${this.#doing}: the source is closed`));
    const waiting = this.#waiter.begin(signal);
    // begin() refused: the signal is aborted already, or another wait is outstanding.
    if (!this.#waiter.waiting) return waiting;
    if (this.#from < this.#to) this.#waiter.wake(true);
    else if (!this.#reading) {
      if (this.#arrived === 0 && !this.#over) this.#read(want);
      else this.#settle();
    }
    return waiting;
  }

  fetch(want: number): boolean {
    if (!this.#shortReadsBlock || want > SHORT_READ || !this.#idle) return false;
    let n: number;
    try {
      n = this.#fd.readNow(this.#current.subarray(0, want));
    } catch (error) {
      // For the next wait to tell.
      this.#failure = transportFailure(error, this.#doing);
      return false;
    }
    this.#ended = n === 0;
    if (n <= 0) return false;
    this.#from = 0;
    this.#to = n;
    return true;
  }

  readInto(into: Uint8Array, signal?: AbortSignal): Promise<number> | undefined {
    return this.#idle ? this.#fill(into, signal) : undefined;
  }

  /** Ends the thread. A read that blocks is interrupted; bytes that it had taken are lost. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#from = this.#to = 0;
    this.#waiter.fail(new TransportError(`${this.#doing}: the source was closed`));
    this.#waiter.stop();
    this.#fd.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Nothing is here, nothing is coming, and something may still come. */
  get #idle(): boolean {
    const empty = this.#from === this.#to && this.#arrived === 0 && !this.#reading && !this.#waiter.waiting;
    return empty && !this.#over && !this.#closed;
  }

  get #over(): boolean {
    return this.#ended || this.#failure !== undefined;
  }

  async #fill(into: Uint8Array, signal: AbortSignal | undefined): Promise<number> {
    const stopped = (): boolean => signal?.aborted ?? false;
    if (stopped()) throw cancellation(signal?.reason, this.#doing);
    const onAbort = (): void => this.#fd.interrupt(false);
    signal?.addEventListener('abort', onAbort);
    this.#reading = true;
    try {
      const n = await this.#fd.read(into);
      this.#position += n;
      this.#ended = n < into.length;
      return n;
    } catch (error) {
      const failure = stopped()
        ? cancellation(signal?.reason, this.#doing)
        : transportFailure(error, this.#doing);
      this.#failure = failure;
      throw failure;
    } finally {
      this.#reading = false;
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** Reads up to `want` bytes into `#other`; what is more than fits is read later. */
  #read(want: number): void {
    const length = Math.min(want, this.#other.length);
    this.#credit = want - length;
    this.#reading = true;
    this.#fd.read(length === this.#other.length ? this.#other : this.#other.subarray(0, length)).then(
      (n) => {
        this.#arrived = n;
        this.#ended = n < length;
        this.#arrive();
      },
      (error: unknown) => {
        this.#failure = transportFailure(error, this.#doing);
        this.#arrive();
      },
    );
  }

  #arrive(): void {
    this.#reading = false;
    if (this.#waiter.waiting) this.#settle();
  }

  /** Gives what has arrived, or says why there is nothing; reads on where the caller wants more. */
  #settle(): void {
    if (this.#arrived > 0) {
      [this.#current, this.#other] = [this.#other, this.#current];
      this.#from = 0;
      this.#to = this.#arrived;
      this.#arrived = 0;
      if (this.#credit > 0 && !this.#over) this.#read(this.#credit);
      this.#waiter.wake(true);
    } else if (this.#failure !== undefined) this.#waiter.fail(this.#failure);
    else this.#waiter.wake(false);
  }
}

/** Writes in order, straight from the views' memory. Nothing is closed or flushed at the end: others go on there. */
export class BlockingSink implements ByteSink {
  readonly #fd: BlockingFd;
  readonly #doing: string;
  #bytesWritten = 0;
  #failed: { readonly reason: unknown } | undefined;
  #last: Promise<void> = Promise.resolve();

  constructor(fd: BlockingFd, options: BlockingOptions = {}) {
    this.#fd = fd;
    this.#doing = `writing ${options.name ?? 'the stream'}`;
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  write(views: readonly Uint8Array[]): Promise<void> {
    const writing = this.#write(views);
    this.#last = writing.catch(() => undefined);
    return writing;
  }

  /** All bytes are written when it resolves. The descriptor stays open and its thread alive. */
  async end(): Promise<void> {
    await this.#last;
    if (this.#failed !== undefined) throw this.#failed.reason;
  }

  /** Stops a write that blocks, and puts /dev/null in the stream's place: nothing more can go there from here. */
  abort(reason: unknown): void {
    if (this.#failed !== undefined) return;
    this.#failed = { reason: cancellationOf(reason, this.#doing) };
    this.#fd.interrupt(true);
  }

  async #write(views: readonly Uint8Array[]): Promise<void> {
    if (this.#failed !== undefined) throw this.#failed.reason;
    try {
      await this.#fd.write(views);
    } catch (error) {
      // After abort() every write fails, for that reason.
      this.#failed ??= { reason: transportFailure(error, this.#doing) };
      throw this.#failed.reason;
    }
    let size = 0;
    for (const view of views) size += view.length;
    this.#bytesWritten += size;
  }
}

function cancellationOf(reason: unknown, doing: string): unknown {
  if (reason === undefined) return new CancelledError(`${doing}: aborted`);
  return cancellation(reason, doing);
}
