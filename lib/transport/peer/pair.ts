/** Two one-way streams as one connection. */
import { Duplex, type Readable, type Writable } from 'node:stream';

/** What stands behind the two streams. */
export interface PairOwner {
  /**
   * Asked when a stream has ended or failed: what is the reason? Undefined if it is an end in good order. Resolves soon.
   * Never rejects.
   */
  failure(): Promise<Error | undefined>;
  /** The connection is given up. Resolves when all is released. `orderly`: both directions have come to their end. */
  release(orderly: boolean): Promise<void>;
}

/**
 * One Duplex of two streams: the standard streams of a child, or of this process. Ends each direction by itself. What was
 * received before a failure is given out before the failure.
 */
export class PairDuplex extends Duplex {
  readonly #readable: Readable;
  readonly #writable: Writable;
  readonly #owner: PairOwner | undefined;
  /** The failure that follows what is still to be read. */
  #last: Error | undefined;
  #over = false;

  constructor(readable: Readable, writable: Writable, owner?: PairOwner) {
    super({ allowHalfOpen: true });
    this.#readable = readable;
    this.#writable = writable;
    this.#owner = owner;
    // Paused on purpose before the listener comes, so that nothing flows until the first read.
    readable.pause();
    readable.on('data', (chunk: Uint8Array) => {
      if (!this.push(chunk)) readable.pause();
    });
    readable.on('end', () => this.#inputOver(undefined));
    readable.on('error', (error) => this.#inputOver(error));
    readable.on('close', () => this.#inputOver(undefined));
    // A write that fails says so by its callback.
    writable.on('error', () => undefined);
  }

  override _read(): void {
    this.#readable.resume();
  }

  override read(size?: number): unknown {
    const chunk: unknown = super.read(size);
    if (this.#last !== undefined) process.nextTick(() => this.#fail());
    return chunk;
  }

  override _write(chunk: Uint8Array, _encoding: string, done: (error?: Error | null) => void): void {
    this.#writable.write(chunk, (error) => this.#written(error, done));
  }

  override _writev(
    chunks: readonly { readonly chunk: unknown }[],
    done: (error?: Error | null) => void,
  ): void {
    const writable = this.#writable;
    writable.cork();
    chunks.forEach(({ chunk }, i) => {
      if (i < chunks.length - 1) writable.write(chunk, () => undefined);
      else writable.write(chunk, (error) => this.#written(error, done));
    });
    writable.uncork();
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#writable.end((error?: Error | null) => this.#written(error, done));
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    const orderly = error === null && this.readableEnded && this.writableFinished;
    this.#readable.destroy();
    this.#writable.destroy();
    const released = this.#owner?.release(orderly) ?? Promise.resolve();
    released.then(
      () => done(error),
      (later: unknown) => done(error ?? (later as Error)),
    );
  }

  /** The reason of a failed write is known better by whoever was to read it. */
  #written(error: Error | null | undefined, done: (error?: Error | null) => void): void {
    if (!error) done();
    else void this.#reason().then((reason) => done(reason ?? error));
  }

  #inputOver(error: Error | undefined): void {
    if (this.#over) return;
    this.#over = true;
    void this.#reason().then((reason) => {
      this.#last = reason ?? error;
      if (this.destroyed) return;
      if (this.#last === undefined) this.push(null);
      else this.#fail();
    });
  }

  async #reason(): Promise<Error | undefined> {
    return this.#owner?.failure();
  }

  #fail(): void {
    if (this.readableLength === 0) this.destroy(this.#last);
  }
}
