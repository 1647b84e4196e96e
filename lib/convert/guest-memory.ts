/**
 * The pages that the checkpoints of a Remus image have changed, in a temporary file: contents at pfn × 4096, so that the
 * file has holes where nothing changed, and types in memory, 64 Ki pfns at a time.
 */
import type { FileHandle } from 'node:fs/promises';
import { PAGE_SIZE } from '../abi/pages.js';
import { TransportError } from '../errors.js';
import { createNameless } from '../transport/nameless.js';

const CHUNK_SHIFT = 16;
const CHUNK = 1 << CHUNK_SHIFT;
const UNCHANGED = 0xff;

export class GuestMemory {
  readonly #folder: string;
  readonly #types = new Map<number, Uint8Array>();
  #file: FileHandle | undefined;
  /** Bytes of the file with its holes. */
  #size = 0;
  /** Bytes that were written to it; some more than once. */
  #written = 0;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** Bytes that the file takes at most. */
  get bytes(): number {
    return Math.min(this.#size, this.#written);
  }

  /** Notes that a page has changed, and its type now. */
  change(pfn: number, type: number): void {
    const index = pfn >>> CHUNK_SHIFT;
    let chunk = this.#types.get(index);
    if (chunk === undefined) {
      chunk = new Uint8Array(CHUNK).fill(UNCHANGED);
      this.#types.set(index, chunk);
    }
    chunk[pfn & (CHUNK - 1)] = type;
  }

  /** The changed pages, in ascending order. */
  *changed(): Generator<{ readonly pfn: number; readonly type: number }> {
    for (const index of [...this.#types.keys()].sort((a, b) => a - b)) {
      const chunk = this.#types.get(index) as Uint8Array;
      for (let i = 0; i < CHUNK; i++) {
        const type = chunk[i] as number;
        if (type !== UNCHANGED) yield { pfn: index * CHUNK + i, type };
      }
    }
  }

  /** Writes bytes at an offset in guest memory. Rejects with TransportError. */
  async write(bytes: Uint8Array, offset: number): Promise<void> {
    const file = await this.#open();
    for (let done = 0; done < bytes.length;) {
      const { bytesWritten } = await this.#doing(() =>
        file.write(bytes, done, bytes.length - done, offset + done),
      );
      done += bytesWritten;
    }
    this.#written += bytes.length;
    this.#size = Math.max(this.#size, offset + bytes.length);
  }

  /** Reads guest memory; zeros where nothing was written. Rejects with TransportError. */
  async read(into: Uint8Array, offset: number): Promise<void> {
    const file = await this.#open();
    let done = 0;
    while (done < into.length) {
      const { bytesRead } = await this.#doing(() => file.read(into, done, into.length - done, offset + done));
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    into.fill(0, done);
  }

  /** Gives up file and types. */
  async close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    this.#types.clear();
    await this.#doing(() => file?.close());
  }

  async #open(): Promise<FileHandle> {
    return (this.#file ??= await this.#doing(() => createNameless(this.#folder)));
  }

  async #doing<T>(work: () => Promise<T> | T): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      throw new TransportError(`keeping the guest's memory in ${this.#folder}: ${String(cause)}`, { cause });
    }
  }
}

/** Runs of consecutive numbers: their first index and length. */
export function* runs(pfns: ArrayLike<number>, count: number): Generator<readonly [from: number, n: number]> {
  for (let from = 0; from < count;) {
    let n = 1;
    while (from + n < count && pfns[from + n] === (pfns[from] as number) + n) n++;
    yield [from, n];
    from += n;
  }
}

/** Where a page stands in guest memory. */
export function offsetOf(pfn: number): number {
  return pfn * PAGE_SIZE;
}
