/** Compressing into another sink; compress.ts has the form on the wire. */
import { CancelledError, TransportError } from '../errors.js';
import { algorithmOf, type ZlibStream } from './compression.js';
import { transportFailure } from './failure.js';
import type { ByteSink } from './types.js';

/** Bytes that are collected before the engine is given them: many small writes cost one turn of it. */
const STAGE = 512 * 1024;
/** ms after which bytes that were written leave, even if a stage is not full. */
const LINGER = 100;
/** Writes to the sink below that may be under way. */
const IN_FLIGHT = 2;

/**
 * Compresses what is written and writes it to another sink.
 *
 * All bytes are copied first: the memory behind the views may change while the guest runs, and engines that see one byte
 * twice may go wrong if it is not the same then.
 */
export class CompressingSink implements ByteSink {
  readonly #sink: ByteSink;
  readonly #engine: ZlibStream;
  readonly #flushKind: number;
  /** Two buffers: one is filled while the engine works on the other. */
  #stage = new Uint8Array(STAGE);
  #other = new Uint8Array(STAGE);
  #filled = 0;
  /** The engine has bytes that it has not given out yet. */
  #held = false;
  /** The engine's work on the other buffer. */
  #working: Promise<void> = Promise.resolve();
  /** The last of the calls, which are served in order. */
  #turn: Promise<void> = Promise.resolve();
  #linger: NodeJS.Timeout | undefined;
  #failed: { reason: unknown } | undefined;
  /** What waits for something that will not come after a failure. */
  readonly #waiting = new Set<(reason: unknown) => void>();
  #ended: Promise<void> | undefined;
  readonly #pumping: Promise<void>;
  #bytesWritten = 0;
  #compressedBytes = 0;

  constructor(sink: ByteSink, algorithm: string) {
    const { compress, flush } = algorithmOf(algorithm);
    this.#sink = sink;
    this.#engine = compress();
    this.#flushKind = flush;
    this.#engine.on('error', () => undefined);
    this.#pumping = this.#pump();
    // Its failure is told by `#failed`.
    this.#pumping.catch(() => undefined);
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  /** Bytes given to the sink below so far. */
  get compressedBytes(): number {
    return this.#compressedBytes;
  }

  write(views: readonly Uint8Array[]): Promise<void> {
    if (this.#ended !== undefined) return Promise.reject(new TransportError('compressing: write after end'));
    return this.#inTurn(async () => {
      let bytes = 0;
      for (const view of views) {
        bytes += view.length;
        for (let at = 0; at < view.length;) {
          if (this.#filled === STAGE) await this.#hand();
          const n = Math.min(STAGE - this.#filled, view.length - at);
          this.#stage.set(view.subarray(at, at + n), this.#filled);
          this.#filled += n;
          at += n;
        }
      }
      this.#bytesWritten += bytes;
      if (this.#filled > 0 || this.#held) this.#linger ??= setTimeout(() => this.#flush(), LINGER);
    });
  }

  end(): Promise<void> {
    this.#ended ??= this.#inTurn(async () => {
      clearTimeout(this.#linger);
      await this.#hand();
      await this.#working;
      this.#engine.end();
      await this.#orFailure(this.#pumping);
      // n = 0, and the length as 64 bits.
      const mark = new Uint8Array(12);
      new DataView(mark.buffer).setBigUint64(4, BigInt(this.#bytesWritten), true);
      await this.#orFailure(this.#sink.write([mark]));
      this.#compressedBytes += mark.length;
      this.#stage = this.#other = new Uint8Array(0);
    });
    return this.#ended;
  }

  abort(reason: unknown): void {
    this.#fail(reason ?? new CancelledError('compressing: aborted'));
    this.#sink.abort(reason);
  }

  /** Serves the calls one after the other. After a failure none of them goes on. */
  #inTurn(work: () => Promise<void>): Promise<void> {
    const mine = this.#turn.then(async () => {
      this.#check();
      try {
        await work();
      } catch (error) {
        this.#fail(error);
      }
      // Nothing proves that bytes went anywhere once the sink has failed. What failed first is what is told.
      this.#check();
    });
    this.#turn = mine.catch(() => undefined);
    return mine;
  }

  /** Throws what failed. */
  #check(): void {
    if (this.#failed !== undefined) throw this.#failed.reason;
  }

  /** Gives the engine what is collected, and takes the other buffer once the engine is done with it. */
  async #hand(): Promise<void> {
    await this.#working;
    if (this.#filled === 0) return;
    const full = this.#stage.subarray(0, this.#filled);
    [this.#stage, this.#other] = [this.#other, this.#stage];
    this.#filled = 0;
    this.#held = true;
    this.#working = this.#engineDoes((done) => void this.#engine.write(full, done));
    this.#working.catch(() => undefined);
  }

  #flush(): void {
    this.#linger = undefined;
    this.#inTurn(async () => {
      if (this.#ended !== undefined) return;
      await this.#hand();
      await this.#working;
      if (!this.#held) return;
      this.#held = false;
      await this.#engineDoes((done) => {
        this.#engine.flush(this.#flushKind, () => done(null));
      });
    }).catch(() => undefined);
  }

  /** Frames what the engine gives out, until its end. A sink that is slow makes the engine wait. */
  async #pump(): Promise<void> {
    const writing: Promise<void>[] = [];
    try {
      for await (const chunk of this.#engine as AsyncIterable<Uint8Array>) {
        const head = new Uint8Array(4);
        new DataView(head.buffer).setUint32(0, chunk.length, true);
        const write = this.#sink.write([head, chunk]).then(() => {
          this.#compressedBytes += head.length + chunk.length;
        });
        write.catch((error: unknown) => this.#fail(error));
        writing.push(write);
        if (writing.length >= IN_FLIGHT) await writing.shift();
      }
      await Promise.all(writing);
    } catch (error) {
      this.#fail(transportFailure(error, 'compressing'));
      throw error;
    }
  }

  /** Something that the engine calls back for. Rejects at once if something fails meanwhile. */
  #engineDoes(start: (done: (error: Error | null | undefined) => void) => void): Promise<void> {
    return this.#orFailure(
      new Promise((resolve, reject) => start((error) => (error ? reject(error) : resolve()))),
    );
  }

  #orFailure(working: Promise<void>): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#failed !== undefined) {
        working.catch(() => undefined);
        // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason
        reject(this.#failed.reason);
        return;
      }
      this.#waiting.add(reject);
      working.then(resolve, reject).finally(() => this.#waiting.delete(reject));
    });
  }

  /** The first failure stays. The engine goes at once; its memory when its thread is done with it. */
  #fail(reason: unknown): void {
    if (this.#failed !== undefined) return;
    this.#failed = { reason };
    clearTimeout(this.#linger);
    this.#engine.destroy();
    for (const reject of this.#waiting) reject(reason);
    this.#waiting.clear();
  }
}
