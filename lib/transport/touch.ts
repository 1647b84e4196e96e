/** Reading parts of a file for nothing but to know that they can be read. */
import * as fs from 'node:fs';
import { TransportError } from '../errors.js';
import { transportFailure } from './failure.js';

/** Reads under way at once, each into a buffer of its own: what arrives is not looked at, so the buffers stay in the caches. */
const READS = 3;
const CHUNK = 1024 * 1024;

/** Reads ranges of a file in the background, a few reads at a time. */
export class FileToucher {
  readonly #fd: number;
  readonly #doing: string;
  /** Ranges to be read: offset, length, offset, length, … from `#at` on. */
  #ranges: number[] = [];
  #at = 0;
  /** Bytes of them that are not read yet. */
  #left = 0;
  #underWay = 0;
  #failure: unknown;
  readonly #free: Uint8Array[] = [];
  #settled: { readonly limit: number; readonly resolve: () => void } | undefined;

  constructor(fd: number, doing: string) {
    this.#fd = fd;
    this.#doing = doing;
  }

  /** Adds a range; its reading begins at once if nothing else is to be read. */
  add(offset: number, length: number): void {
    if (length === 0 || this.#failure !== undefined) return;
    this.#ranges.push(offset, length);
    this.#left += length;
    while (this.#underWay < READS && this.#next()) this.#underWay++;
  }

  /**
   * Resolves when at most `limit` bytes are still to be read. One caller at a time.
   * Rejects with TransportError if something could not be read.
   */
  async settle(limit: number): Promise<void> {
    if (this.#failure === undefined && this.#left > limit) {
      await new Promise<void>((resolve) => {
        this.#settled = { limit, resolve };
      });
    }
    if (this.#failure !== undefined) throw this.#failure as TransportError;
  }

  /** Forgets what is still to be read, and resolves once no read uses the descriptor. */
  async stop(): Promise<void> {
    this.#failure ??= new TransportError(`${this.#doing}: the source was closed`);
    this.#wake();
    while (this.#underWay > 0) await new Promise((resolve) => setImmediate(resolve));
  }

  /** Starts the next read. False if there is nothing to read. */
  #next(): boolean {
    if (this.#failure !== undefined) return false;
    const offset = this.#ranges[this.#at];
    const length = this.#ranges[this.#at + 1];
    if (offset === undefined || length === undefined) return false;
    const n = Math.min(length, CHUNK);
    if (n < length) {
      this.#ranges[this.#at] = offset + n;
      this.#ranges[this.#at + 1] = length - n;
    } else {
      this.#at += 2;
      if (this.#at === this.#ranges.length) {
        this.#ranges = [];
        this.#at = 0;
      }
    }
    this.#read(offset, n, this.#free.pop() ?? Buffer.allocUnsafeSlow(CHUNK));
    return true;
  }

  #read(offset: number, length: number, buffer: Uint8Array): void {
    fs.read(this.#fd, buffer, 0, length, offset, (error, n) => {
      if (error !== null) this.#failure ??= transportFailure(error, this.#doing);
      else if (n === 0) {
        this.#failure ??= new TransportError(
          `${this.#doing}: the file has become shorter, it ends at ${offset}`,
        );
      } else if (n < length && this.#failure === undefined) {
        this.#left -= n;
        this.#read(offset + n, length - n, buffer);
        return;
      } else this.#left -= n;
      this.#free.push(buffer);
      if (!this.#next()) this.#underWay--;
      this.#wake();
    });
  }

  #wake(): void {
    const waiting = this.#settled;
    if (waiting === undefined || (this.#failure === undefined && this.#left > waiting.limit)) return;
    this.#settled = undefined;
    waiting.resolve();
  }
}
