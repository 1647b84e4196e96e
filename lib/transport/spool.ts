/**
 * The bytes of a checkpoint until it is complete. Applying them early would leave a guest that is neither the last
 * checkpoint nor the next if the stream ends in between.
 *
 * Small checkpoints stay in memory; of larger ones all but the last blocks are in a file without a name. The same bytes
 * are then read back, so a checkpoint costs one write and one read of the page cache at most.
 */
import type { FileHandle } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { StreamFormatError, TransportError } from '../errors.js';
import { createNameless } from './nameless.js';

/** StreamErrorCode.LIMIT, from a room above this one. */
const LIMIT = 'ERR_XEN_STREAM_LIMIT';

const BLOCK = 1024 * 1024;
/** Blocks kept in memory. */
const BLOCKS_MAX = 16;

export interface SpoolOptions {
  /** Most bytes of one checkpoint: more than all of the guest's memory and state cannot be right. */
  readonly limit: number;
  readonly directory?: string | undefined;
}

export class CheckpointSpool {
  readonly #limit: number;
  readonly #directory: string;
  readonly #blocks: Uint8Array[] = [];
  /** Bytes in `#blocks`; all blocks but the last are full. */
  #inMemory = 0;
  #inFile = 0;
  #file: FileHandle | undefined;

  constructor(options: SpoolOptions) {
    this.#limit = options.limit;
    this.#directory = options.directory ?? tmpdir();
  }

  /** Bytes held. */
  get size(): number {
    return this.#inFile + this.#inMemory;
  }

  /**
   * Adds a copy of the bytes. Returns a promise where a file has to be written. `offset` is theirs in the stream, for
   * the error (StreamFormatError, LIMIT) of a checkpoint without end.
   */
  append(bytes: Uint8Array, offset: number): Promise<void> | undefined {
    if (this.size + bytes.length > this.#limit) {
      const reason = `a checkpoint of more than ${this.#limit} bytes, more than the guest can have`;
      throw new StreamFormatError(LIMIT, reason, { offset });
    }
    for (let done = 0; done < bytes.length;) {
      const at = this.#inMemory % BLOCK;
      const index = (this.#inMemory - at) / BLOCK;
      const block = (this.#blocks[index] ??= new Uint8Array(BLOCK));
      const n = Math.min(BLOCK - at, bytes.length - done);
      block.set(bytes.subarray(done, done + n), at);
      this.#inMemory += n;
      done += n;
    }
    return this.#inMemory >= BLOCKS_MAX * BLOCK ? this.#flush() : undefined;
  }

  /**
   * Gives all bytes to `use`, in order, and forgets them. Views are valid until the promise that `use` returned
   * settles. Throws TransportError if the file cannot be read.
   */
  async drain(use: (bytes: Uint8Array) => Promise<void>): Promise<void> {
    if (this.#inFile > 0) {
      const block = new Uint8Array(BLOCK);
      for (let at = 0; at < this.#inFile;) {
        const n = await this.#read(block, Math.min(BLOCK, this.#inFile - at), at);
        await use(block.subarray(0, n));
        at += n;
      }
    }
    for (let at = 0; at < this.#inMemory; at += BLOCK) {
      const block = this.#blocks[at / BLOCK] as Uint8Array;
      await use(block.subarray(0, Math.min(BLOCK, this.#inMemory - at)));
    }
    await this.clear();
  }

  /** Forgets what it holds. */
  async clear(): Promise<void> {
    const hadFile = this.#inFile > 0;
    this.#inFile = 0;
    this.#inMemory = 0;
    // Space of the disk goes back; the file itself serves the next checkpoint.
    if (hadFile) await this.#doing(() => this.#file?.truncate(0));
  }

  /** Gives up file and memory. */
  async close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    this.#blocks.length = this.#inMemory = this.#inFile = 0;
    await this.#doing(() => file?.close());
  }

  async #flush(): Promise<void> {
    const file = (this.#file ??= await this.#doing(() => createNameless(this.#directory)));
    for (let at = 0; at < this.#inMemory; at += BLOCK) {
      const block = this.#blocks[at / BLOCK] as Uint8Array;
      const size = Math.min(BLOCK, this.#inMemory - at);
      for (let done = 0; done < size;) {
        const { bytesWritten } = await this.#doing(() =>
          file.write(block, done, size - done, this.#inFile + done),
        );
        done += bytesWritten;
      }
      this.#inFile += size;
    }
    this.#inMemory = 0;
  }

  async #read(into: Uint8Array, length: number, at: number): Promise<number> {
    const { bytesRead } = await this.#doing(() => (this.#file as FileHandle).read(into, 0, length, at));
    if (bytesRead === 0) throw new TransportError('reading back a checkpoint: the file has become shorter');
    return bytesRead;
  }

  async #doing<T>(work: () => Promise<T> | T): Promise<T> {
    try {
      return await work();
    } catch (cause) {
      throw new TransportError(`keeping a checkpoint in ${this.#directory}: ${String(cause)}`, { cause });
    }
  }
}
