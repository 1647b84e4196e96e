/** Decompressing from another source; compress.ts has the form on the wire. */
import { u32 } from '../bytes/le.js';
import { StreamFormatError, TransportError, UsageError } from '../errors.js';
import { algorithmOf, type ZlibStream } from './compression.js';
import { cancellation } from './failure.js';
import type { ByteSource } from './types.js';
import { Waiter } from './waiter.js';

/** Most bytes of a block. */
const MAX_BLOCK = 1024 * 1024;
const HEAD = 4;
const MARK = 8;

const DOING = 'decompressing';

/** Decompresses what another source holds. Works only while somebody waits, but for one chunk that is made ahead. */
export class DecompressingSource implements ByteSource {
  readonly #source: ByteSource;
  readonly #engine: ZlibStream;
  readonly #waiter = new Waiter(DOING);
  /** Where in `source` the compressed stream begins. */
  readonly #from: number;
  /** What was decompressed and not taken. */
  #chunk: Uint8Array | undefined;
  #at = 0;
  #position = 0;
  /** The header or the last mark, as far as it is there. */
  readonly #head = new Uint8Array(HEAD + MARK);
  #headLength = 0;
  /** Bytes of the present block that are not read yet. */
  #left = 0;
  /** Bytes given to the engine, and whether it is still at them. */
  #fed = 0;
  #feeding = false;
  /** Bytes of the whole as the last block tells it. */
  #total: bigint | undefined;
  /** All bytes are given out, and their number is right. */
  #complete = false;
  #engineEnded = false;
  #failure: Error | undefined;
  #waiting = false;
  #closed: Promise<void> | undefined;

  constructor(source: ByteSource, algorithm: string) {
    this.#source = source;
    this.#from = source.position;
    this.#engine = algorithmOf(algorithm).decompress();
    this.#engine.on('readable', this.#wake);
    this.#engine.on('end', () => {
      this.#engineEnded = true;
      this.#wake();
    });
    this.#engine.on('error', (error) => {
      this.#failure ??= this.#broken(`the compressed data is broken: ${error.message}`, error);
      this.#wake();
    });
    this.#engine.on('close', this.#wake);
  }

  get position(): number {
    return this.#position;
  }

  /** Bytes of the compressed stream that were read so far. */
  get compressedBytes(): number {
    return this.#source.position - this.#from;
  }

  take(max: number): Uint8Array | undefined {
    const chunk = this.#chunk;
    if (chunk === undefined) return undefined;
    const n = Math.min(chunk.length - this.#at, max);
    const view = chunk.subarray(this.#at, this.#at + n);
    this.#at += n;
    this.#position += n;
    if (this.#at === chunk.length) {
      this.#chunk = undefined;
      this.#at = 0;
    }
    return view;
  }

  async wait(_want: number, signal?: AbortSignal): Promise<boolean> {
    if (this.#waiting) throw new UsageError(`${DOING}: a second wait before the first ended`);
    this.#waiting = true;
    try {
      return await this.#advance(signal);
    } finally {
      this.#waiting = false;
    }
  }

  /**
   * Reads the end of the compressed stream. Rejects with StreamFormatError (`ERR_XEN_STREAM_TRAILING`) if more of the
   * stream comes before it, and as `wait` does.
   */
  async finish(signal?: AbortSignal): Promise<void> {
    if (!(await this.wait(1, signal))) return;
    throw new StreamFormatError('ERR_XEN_STREAM_TRAILING', 'the compressed stream goes on after its end', {
      offset: this.#position,
    });
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#failure ??= new TransportError(`${DOING}: the source was closed`);
    this.#chunk = undefined;
    this.#waiter.fail(this.#failure);
    this.#waiter.stop();
    this.#engine.destroy();
    // A thread may still look at a view of the source below, which must not change meanwhile.
    while (this.#feeding) await new Promise((resolve) => setImmediate(resolve));
  }

  /** Until a byte is at hand (true) or none will come (false). */
  async #advance(signal: AbortSignal | undefined): Promise<boolean> {
    for (;;) {
      if (signal?.aborted === true) throw cancellation(signal.reason, DOING);
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#chunk !== undefined) return true;
      if (this.#complete) return false;
      const chunk = this.#engine.read() as Uint8Array | null;
      if (chunk !== null) {
        if (chunk.length > 0) this.#chunk = chunk;
      } else if (this.#engineEnded) await this.#lastBlock(signal);
      else if (this.#feeding || this.#total !== undefined) await this.#engineTurn(signal);
      else await this.#feed(signal);
    }
  }

  /** Waits until the engine has something to say: data, its end, an error, or that it wants more. */
  async #engineTurn(signal: AbortSignal | undefined): Promise<void> {
    if (this.#engine.destroyed && this.#failure === undefined && !this.#engineEnded) {
      throw (this.#failure = this.#broken('the decompression stopped'));
    }
    await this.#waiter.begin(signal);
  }

  /** Gives the engine the next piece. */
  async #feed(signal: AbortSignal | undefined): Promise<void> {
    if (this.#left === 0) {
      await this.#block(signal);
      return;
    }
    const piece = await this.#take(this.#left, signal);
    this.#left -= piece.length;
    this.#fed += piece.length;
    this.#feeding = true;
    this.#engine.write(piece, () => {
      this.#feeding = false;
      this.#wake();
    });
  }

  /** Reads the head of the next block. The last one also has the length of all, and ends what the engine is given. */
  async #block(signal: AbortSignal | undefined): Promise<void> {
    await this.#headTo(HEAD, signal);
    const length = u32(this.#head, 0);
    if (length > MAX_BLOCK) {
      throw (this.#failure = this.#broken(
        `a block of ${length} bytes, at most ${MAX_BLOCK} are allowed`,
        undefined,
        HEAD,
      ));
    }
    if (length > 0) {
      this.#left = length;
      this.#headLength = 0;
      return;
    }
    await this.#headTo(HEAD + MARK, signal);
    this.#total = new DataView(this.#head.buffer).getBigUint64(HEAD, true);
    this.#engine.end();
  }

  /** The engine has given out all that it will. The last block must follow now, and must be right. */
  async #lastBlock(signal: AbortSignal | undefined): Promise<void> {
    if (this.#left > 0 || this.#engine.bytesWritten < this.#fed) {
      throw (this.#failure = this.#broken('more bytes follow the end of the compressed data'));
    }
    if (this.#total === undefined) {
      await this.#block(signal);
      if (this.#left > 0)
        throw (this.#failure = this.#broken('more bytes follow the end of the compressed data'));
    }
    const { position } = this;
    if (this.#total !== BigInt(position)) {
      throw (this.#failure = this.#broken(
        `${position} bytes came out of the compressed data, its sender gave ${String(this.#total)} in`,
      ));
    }
    this.#complete = true;
  }

  async #headTo(length: number, signal: AbortSignal | undefined): Promise<void> {
    while (this.#headLength < length) {
      const piece = await this.#take(length - this.#headLength, signal);
      this.#head.set(piece, this.#headLength);
      this.#headLength += piece.length;
    }
  }

  /** 1…max bytes of the source below. */
  async #take(max: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    for (;;) {
      const piece = this.#source.take(max);
      if (piece !== undefined) return piece;
      if (await this.#source.wait(max, signal)) continue;
      throw (this.#failure ??= new StreamFormatError(
        'ERR_XEN_STREAM_TRUNCATED',
        'the compressed stream ends before its end',
        { offset: this.compressedBytes },
      ));
    }
  }

  /** @param back Bytes by which the place lies before what was read */
  #broken(reason: string, cause?: unknown, back = 0): StreamFormatError {
    return new StreamFormatError(
      'ERR_XEN_STREAM_COMPRESSION',
      reason,
      { offset: this.compressedBytes - back },
      cause === undefined ? {} : { cause },
    );
  }

  readonly #wake = (): void => {
    this.#waiter.wake(true);
  };
}
