/**
 * Regular files as sources and sinks, through fs and libuv's pool. Peers go through socket.ts: a stalled one would hold
 * a thread of the pool.
 */

import * as fs from 'node:fs';
import { promisify } from 'node:util';
import { CancelledError, TransportError, UsageError } from '../errors.js';
import { transportFailure } from './failure.js';
import { FileToucher } from './touch.js';
import type { ByteSink, ByteSource } from './types.js';
import { Waiter } from './waiter.js';

const close = promisify(fs.close);
const datasync = promisify(fs.fdatasync);

/** Bytes of one read. Two such buffers exist: one is read while the other is used. Less costs more calls, more misses the caches. */
export const FILE_CHUNK = 2 * 1024 * 1024;

/** Bytes of the first read, and of the first after a skip: who skips does not want what lies behind. */
const SLOW_START = 64 * 1024;

/** Most views of one writev: IOV_MAX of Linux. libuv would split more, but a short write is simpler to go on from. */
const IOV_MAX = 1024;

export interface FileSourceOptions {
  /** For messages. Default `fd N`. */
  name?: string | undefined;
  /** Bytes of one read. Default 2 MiB. */
  chunk?: number | undefined;
  /** Offset of the first byte. Default: where the descriptor stands; its own offset then moves along. */
  start?: number | undefined;
  /** Bytes in the file, if it is one that can be read at any offset; allows `skip`, with `start`. */
  size?: number | undefined;
  /**
   * False: never read beyond what `wait` was told that the caller can use, so that whoever shares the descriptor finds
   * it exactly where the stream ended. Default true.
   */
  readAhead?: boolean | undefined;
  /** Close the descriptor with the source. Default true. */
  autoClose?: boolean | undefined;
}

/**
 * Reads a file by large blocks, the next one while the present one is used. Blocks begin small and grow, at the start and
 * after each skip.
 *
 * A view that `take` gave lies in one of two buffers of the source.
 */
export class FileSource implements ByteSource {
  readonly #fd: number;
  readonly #doing: string;
  readonly #readAhead: boolean;
  readonly #autoClose: boolean;
  readonly #waiter: Waiter;
  readonly #chunk: number;
  readonly #size: number;
  /** Where the next read begins: behind what has arrived. */
  #offset: number | null;
  /** Bytes of the next read, and whether one more follows it without being asked for. */
  #length: number;
  #sequential = false;
  /** True if nobody wants what is being read any more. */
  #discard = false;
  /** Bytes that may be taken are `#current[#from, #to)`; `#other` is being read into, or empty. */
  #current: Uint8Array;
  #other: Uint8Array;
  #from = 0;
  #to = 0;
  /** The read under way, and how it ended. */
  #reading: Promise<void> | undefined;
  #arrived = 0;
  #ended = false;
  #failure: unknown;
  #position = 0;
  #closed: Promise<void> | undefined;
  #toucher: FileToucher | undefined;

  /** @param fd A descriptor open for reading; given away unless `autoClose` is false */
  constructor(fd: number, options: FileSourceOptions = {}) {
    const chunk = options.chunk ?? FILE_CHUNK;
    if (!(chunk >= 1)) throw new UsageError(`chunk of ${chunk} bytes`);
    this.#fd = fd;
    this.#doing = `reading ${options.name ?? `fd ${fd}`}`;
    this.#offset = options.start ?? null;
    this.#chunk = chunk;
    this.#size = options.size ?? 0;
    this.#length = Math.min(SLOW_START, chunk);
    this.#readAhead = options.readAhead ?? true;
    this.#autoClose = options.autoClose ?? true;
    this.#waiter = new Waiter(this.#doing);
    this.#current = Buffer.allocUnsafeSlow(chunk);
    this.#other = Buffer.allocUnsafeSlow(this.#readAhead ? chunk : 0);
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
    if (this.#closed !== undefined) {
      return Promise.reject(new TransportError(`${this.#doing}: the source is closed`));
    }
    const waiting = this.#waiter.begin(signal);
    // begin() refused: the signal is aborted already, or another wait is outstanding.
    if (!this.#waiter.waiting) return waiting;
    if (this.#from < this.#to) this.#waiter.wake(true);
    else if (this.#reading === undefined && this.#arrived > 0) this.#swap();
    else if (this.#reading === undefined) this.#settleOrRead(want);
    return waiting;
  }

  touched(limit: number): Promise<void> {
    return this.#toucher?.settle(limit) ?? Promise.resolve();
  }

  skip(max: number, touch = false): number {
    let n = this.#drop(max);
    if (n < max && this.#arrived > 0) {
      this.#turn();
      n += this.#drop(max - n);
    }
    const offset = this.#offset;
    if (
      n < max &&
      offset !== null &&
      !this.#ended &&
      this.#failure === undefined &&
      this.#closed === undefined
    ) {
      const jump = Math.min(max - n, this.#size - offset);
      if (jump > 0) {
        if (touch) {
          this.#toucher ??= new FileToucher(this.#fd, this.#doing);
          this.#toucher.add(offset, jump);
        }
        this.#offset = offset + jump;
        this.#discard = this.#reading !== undefined;
        this.#length = Math.min(SLOW_START, this.#chunk);
        this.#sequential = false;
        n += jump;
      }
    }
    this.#position += n;
    return n;
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Passes over bytes at hand. */
  #drop(max: number): number {
    const n = Math.min(max, this.#to - this.#from);
    this.#from += n;
    return n;
  }

  /** The bytes read ahead become the present ones. */
  #turn(): void {
    [this.#current, this.#other] = [this.#other, this.#current];
    this.#from = 0;
    this.#to = this.#arrived;
    this.#arrived = 0;
  }

  /** The bytes read ahead become the present ones; the next read starts. */
  #swap(): void {
    this.#turn();
    this.#length = Math.min(this.#chunk, this.#length * 2);
    if (this.#readAhead && this.#sequential && !this.#ended && this.#failure === undefined) {
      this.#read(this.#length);
    }
    this.#sequential = true;
    this.#waiter.wake(true);
  }

  #settleOrRead(want: number): void {
    if (this.#failure !== undefined) this.#waiter.fail(this.#failure);
    else if (this.#ended) this.#waiter.wake(false);
    else {
      // Without read-ahead there is one buffer, which may be either: nothing is left in it, so it is free.
      if (this.#other.length === 0) [this.#current, this.#other] = [this.#other, this.#current];
      this.#read(this.#readAhead ? this.#length : Math.min(want, this.#other.length));
    }
  }

  /** Reads into `#other`. At most one read is under way, so the descriptor's own offset is used in order. */
  #read(length: number): void {
    this.#reading = new Promise((resolve) => {
      fs.read(this.#fd, this.#other, 0, length, this.#offset, (error, n) => {
        this.#reading = undefined;
        if (this.#discard) this.#discard = false;
        else if (error !== null) this.#failure = transportFailure(error, this.#doing);
        else if (n === 0) this.#ended = true;
        else {
          this.#arrived = n;
          if (this.#offset !== null) this.#offset += n;
        }
        if (this.#waiter.waiting) {
          if (this.#arrived > 0) this.#swap();
          else this.#settleOrRead(1);
        }
        resolve();
      });
    });
  }

  async #close(): Promise<void> {
    this.#from = this.#to = 0;
    this.#waiter.fail(new TransportError(`${this.#doing}: the source was closed`));
    this.#waiter.stop();
    // The number must not be reused while a read may still use it.
    await this.#reading;
    await this.#toucher?.stop();
    this.#current = this.#other = new Uint8Array(0);
    if (!this.#autoClose) return;
    try {
      await close(this.#fd);
    } catch (error) {
      throw transportFailure(error, this.#doing);
    }
  }
}

export interface FileSinkOptions {
  /** For messages. Default `fd N`. */
  name?: string | undefined;
  /** Wait in `end` until the data is on the disk (fdatasync). Default true. */
  sync?: boolean | undefined;
  /** Close the descriptor with the sink. Default true. */
  autoClose?: boolean | undefined;
}

interface PendingWrite {
  readonly views: readonly Uint8Array[];
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Writes a file with writev, one call at a time.
 *
 * After `abort` or a failure the write under way rejects when the kernel is done with its memory; those behind it
 * reject at once.
 */
export class FileSink implements ByteSink {
  readonly #fd: number;
  readonly #doing: string;
  readonly #sync: boolean;
  readonly #autoClose: boolean;
  readonly #queue: PendingWrite[] = [];
  #busy: Promise<void> | undefined;
  #failed: { reason: unknown } | undefined;
  #bytesWritten = 0;
  #ended: Promise<void> | undefined;
  #released: Promise<void> | undefined;

  /** @param fd A descriptor open for writing; given away unless `autoClose` is false */
  constructor(fd: number, options: FileSinkOptions = {}) {
    this.#fd = fd;
    this.#doing = `writing ${options.name ?? `fd ${fd}`}`;
    this.#sync = options.sync ?? true;
    this.#autoClose = options.autoClose ?? true;
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  write(views: readonly Uint8Array[]): Promise<void> {
    if (this.#failed !== undefined) return rejected(this.#failed.reason);
    if (this.#ended !== undefined) return rejected(new TransportError(`${this.#doing}: write after end`));
    return new Promise((resolve, reject) => {
      this.#queue.push({ views, resolve, reject });
      this.#busy ??= this.#pump();
    });
  }

  end(): Promise<void> {
    this.#ended ??= this.#end();
    return this.#ended;
  }

  abort(reason: unknown): void {
    this.#fail(reason ?? new CancelledError(`${this.#doing}: aborted`));
    void this.#release();
  }

  /** Resolves once the descriptor is closed, after `end` or `abort`; at once if neither was called. Never rejects. */
  get released(): Promise<void> {
    return this.#released ?? Promise.resolve();
  }

  async #pump(): Promise<void> {
    for (let write = this.#queue.shift(); write !== undefined; write = this.#queue.shift()) {
      try {
        const written = await this.#writeAll(write.views);
        if (this.#failed !== undefined) throw this.#failed.reason;
        this.#bytesWritten += written;
        write.resolve();
      } catch (error) {
        this.#fail(error);
        write.reject((this.#failed as unknown as { reason: unknown }).reason);
      }
    }
    this.#busy = undefined;
  }

  async #writeAll(views: readonly Uint8Array[]): Promise<number> {
    let total = 0;
    for (let i = 0; i < views.length; i += IOV_MAX) {
      let rest = views.length <= IOV_MAX ? views : views.slice(i, i + IOV_MAX);
      for (let left = lengthOf(rest); left > 0;) {
        const n = await writev(this.#fd, rest, this.#doing);
        total += n;
        left -= n;
        // An abort in the middle of a long write need not wait for its end.
        if (this.#failed !== undefined) return total;
        if (left > 0) rest = skip(rest, n);
      }
    }
    return total;
  }

  #fail(reason: unknown): void {
    this.#failed ??= { reason };
    for (const write of this.#queue.splice(0)) write.reject(this.#failed.reason);
  }

  async #end(): Promise<void> {
    await this.#busy;
    if (this.#failed === undefined && this.#sync) {
      try {
        await datasync(this.#fd);
      } catch (error) {
        // Pipes and most devices cannot be synced, and say so with one of these.
        const code = (error as NodeJS.ErrnoException).code;
        if (code !== 'EINVAL' && code !== 'EROFS' && code !== 'ENOTSUP') {
          this.#fail(transportFailure(error, this.#doing));
        }
      }
    }
    await this.#release();
    if (this.#failed !== undefined) throw this.#failed.reason;
  }

  #release(): Promise<void> {
    this.#released ??= (async () => {
      await this.#busy;
      if (!this.#autoClose) return;
      try {
        await close(this.#fd);
      } catch (error) {
        // A close that fails may be the report of a write that failed (NFS, quota).
        this.#fail(transportFailure(error, this.#doing));
      }
    })();
    return this.#released;
  }
}

function rejected(reason: unknown): Promise<never> {
  // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason, as it is
  return Promise.reject(reason);
}

function lengthOf(views: readonly Uint8Array[]): number {
  let n = 0;
  for (const view of views) n += view.length;
  return n;
}

/** The views without their first `n` bytes. */
function skip(views: readonly Uint8Array[], n: number): Uint8Array[] {
  let i = 0;
  while (n >= (views[i] as Uint8Array).length) n -= (views[i++] as Uint8Array).length;
  const rest = views.slice(i);
  if (n > 0) rest[0] = (rest[0] as Uint8Array).subarray(n);
  return rest;
}

function writev(fd: number, views: readonly Uint8Array[], doing: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const done = (error: Error | null, n: number): void => {
      if (error !== null) reject(transportFailure(error, doing));
      else if (n === 0) reject(new TransportError(`${doing}: nothing could be written`));
      else resolve(n);
    };
    const [only] = views;
    if (views.length === 1 && only !== undefined) fs.write(fd, only, 0, only.length, null, done);
    else fs.writev(fd, views as Uint8Array[], done);
  });
}
