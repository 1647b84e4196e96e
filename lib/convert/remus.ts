/**
 * The checkpoints of a Remus image after the first. Each is held back until it is complete, and then applied to what is
 * known of the guest's memory; what they have changed comes out at the end, each page once.
 *
 * In the spool, one after the other: u32 kind, u32 length, and
 *
 *     TABLE       a u32 for each entry: type in bits 31–28, pfn below
 *     CONTENTS    page contents of the table before, any number of bytes
 *     COMPRESSED  deltas of the data pages of all tables before, any number of bytes
 */
import { MAX_BATCH, PAGE_SIZE, pageTypeHasData } from '../abi/pages.js';
import { setU32, u32 } from '../bytes/le.js';
import type { PageDataEvent } from '../stream/events.js';
import { formatError, StreamErrorCode } from '../stream/codes.js';
import { isLostEntry } from '../stream/legacy/batch.js';
import { applyDelta, deltaSize } from '../stream/legacy/compressed.js';
import { LegacyChunk, legacyChunkName } from '../stream/legacy/constants.js';
import { CheckpointSpool } from '../transport/spool.js';
import { GuestMemory, offsetOf, runs } from './guest-memory.js';
import type { ConvertedWriter } from './writer.js';

const Kind = { TABLE: 1, CONTENTS: 2, COMPRESSED: 3 } as const;
const ITEM_HEAD = 8;

/** Data pages whose deltas are applied at a time. */
const GROUP = 256;

/** More than this a checkpoint cannot have for each page of the guest: the page, its entry, its delta's markers. */
const CHECKPOINT_PER_PAGE = 2 * PAGE_SIZE;

export class RemusCheckpoints {
  readonly memory: GuestMemory;
  readonly #spool: CheckpointSpool;
  #largest = 0;
  /** Of the checkpoint that is being held back. */
  #compressed = false;

  constructor(folder: string, p2mSize: number) {
    this.memory = new GuestMemory(folder);
    const limit = (p2mSize + MAX_BATCH) * CHECKPOINT_PER_PAGE;
    this.#spool = new CheckpointSpool({ limit, directory: folder });
  }

  /** Bytes of temporary files, at most. */
  get bytes(): number {
    return this.memory.bytes + this.#largest;
  }

  /** Holds back a batch's table. */
  table(event: PageDataEvent): Promise<void> | undefined {
    const { pfns, types, count, offset } = event;
    const item = new Uint8Array(ITEM_HEAD + 4 * count);
    setU32(item, 0, Kind.TABLE);
    setU32(item, 4, 4 * count);
    for (let i = 0; i < count; i++) {
      setU32(item, ITEM_HEAD + 4 * i, (pfns[i] as number) + (types[i] as number) * 2 ** 28);
    }
    this.#compressed = event.compressed === true;
    return this.#spool.append(item, offset);
  }

  /** Holds back page contents, or compressed ones. */
  async contents(bytes: Uint8Array, offset: number, compressed: boolean): Promise<void> {
    const head = new Uint8Array(ITEM_HEAD);
    setU32(head, 0, compressed ? Kind.COMPRESSED : Kind.CONTENTS);
    setU32(head, 4, bytes.length);
    await this.#spool.append(head, offset);
    await this.#spool.append(bytes, offset);
  }

  /** The checkpoint is complete: applies it. `offset` is its end in the stream. */
  async commit(offset: number, signal: AbortSignal): Promise<void> {
    this.#largest = Math.max(this.#largest, this.#spool.size);
    const applier = new Applier(this.memory, offset);
    const items = new ItemReader(applier);
    await this.#spool.drain(async (bytes) => {
      signal.throwIfAborted();
      await items.feed(bytes);
    });
    applier.end(this.#compressed);
  }

  /** Writes all changed pages. */
  async writeOut(writer: ConvertedWriter, signal: AbortSignal): Promise<void> {
    const pfns = new Float64Array(MAX_BATCH);
    const types = new Uint8Array(MAX_BATCH);
    const contents = new Uint8Array(MAX_BATCH * PAGE_SIZE);
    const data = new Float64Array(MAX_BATCH);
    let count = 0;
    const flush = async (): Promise<void> => {
      signal.throwIfAborted();
      let n = 0;
      for (let i = 0; i < count; i++) if (pageTypeHasData(types[i] as number)) data[n++] = pfns[i] as number;
      for (const [from, length] of runs(data, n)) {
        const into = contents.subarray(from * PAGE_SIZE, (from + length) * PAGE_SIZE);
        await this.memory.read(into, offsetOf(data[from] as number));
      }
      await writer.pagesOf(pfns, types, count, n === 0 ? [] : [contents.subarray(0, n * PAGE_SIZE)]);
      count = 0;
    };
    for (const { pfn, type } of this.memory.changed()) {
      pfns[count] = pfn;
      types[count++] = type;
      if (count === MAX_BATCH) await flush();
    }
    if (count > 0) await flush();
  }

  async close(): Promise<void> {
    await this.#spool.close();
    await this.memory.close();
  }
}

/** Takes the spool's items apart. Heads and tables are collected, the rest goes on in pieces. */
class ItemReader {
  readonly #applier: Applier;
  readonly #collected = new Uint8Array(4 * MAX_BATCH);
  #have = 0;
  #kind = 0;
  /** Bytes of the present item that are still to come; 0 while its head is collected. */
  #left = 0;

  constructor(applier: Applier) {
    this.#applier = applier;
  }

  async feed(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      if (this.#left === 0) {
        at += this.#collect(bytes, at, ITEM_HEAD);
        if (this.#have < ITEM_HEAD) return;
        this.#kind = u32(this.#collected, 0);
        this.#left = u32(this.#collected, 4);
        this.#have = 0;
      } else if (this.#kind === Kind.TABLE) {
        const n = this.#collect(bytes, at, this.#have + this.#left);
        at += n;
        this.#left -= n;
        if (this.#left > 0) return;
        this.#applier.table(this.#collected.subarray(0, this.#have));
        this.#have = 0;
      } else {
        const piece = bytes.subarray(at, at + this.#left);
        at += piece.length;
        this.#left -= piece.length;
        if (this.#kind === Kind.CONTENTS) await this.#applier.contents(piece);
        else await this.#applier.deltas(piece);
      }
    }
  }

  #collect(bytes: Uint8Array, at: number, need: number): number {
    const piece = bytes.subarray(at, at + need - this.#have);
    this.#collected.set(piece, this.#have);
    this.#have += piece.length;
    return piece.length;
  }
}

/** Applies one checkpoint. */
class Applier {
  readonly #memory: GuestMemory;
  readonly #offset: number;
  /** Data pages whose contents are still to come, from `#next` on. */
  #waiting: number[] = [];
  #next = 0;
  /** Bytes of the present page's contents that are there. */
  #inPage = 0;
  /** The beginning of a delta that is not whole. */
  #rest: Uint8Array = new Uint8Array(0);
  readonly #group = new Uint8Array(GROUP * PAGE_SIZE);

  constructor(memory: GuestMemory, offset: number) {
    this.#memory = memory;
    this.#offset = offset;
  }

  table(entries: Uint8Array): void {
    if (this.#next > 0) {
      this.#waiting.splice(0, this.#next);
      this.#next = 0;
    }
    for (let at = 0; at < entries.length; at += 4) {
      const word = u32(entries, at);
      const pfn = word & 0x0fff_ffff;
      const type = word >>> 28;
      if (isLostEntry(pfn, type)) continue;
      this.#memory.change(pfn, type);
      if (pageTypeHasData(type)) this.#waiting.push(pfn);
    }
  }

  async contents(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      const pfn = this.#waiting[this.#next];
      if (pfn === undefined) throw this.#mismatch('more contents than pages');
      // As many pages as follow each other go at once.
      let n = 1;
      while (n * PAGE_SIZE - this.#inPage < bytes.length - at && this.#waiting[this.#next + n] === pfn + n)
        n++;
      const size = Math.min(n * PAGE_SIZE - this.#inPage, bytes.length - at);
      await this.#memory.write(bytes.subarray(at, at + size), offsetOf(pfn) + this.#inPage);
      at += size;
      const reached = this.#inPage + size;
      this.#next += Math.floor(reached / PAGE_SIZE);
      this.#inPage = reached % PAGE_SIZE;
    }
  }

  async deltas(piece: Uint8Array): Promise<void> {
    const bytes = this.#rest.length === 0 ? piece : concat(this.#rest, piece);
    let at = 0;
    for (;;) {
      // Which deltas are whole, and for which pages; a page that stands twice begins a group of its own.
      const starts: number[] = [];
      const pfns = new Set<number>();
      let to = at;
      while (starts.length < GROUP) {
        const size = deltaSize(bytes, to, this.#offset);
        if (size === 0) break;
        const pfn = this.#waiting[this.#next + starts.length];
        if (pfn === undefined) throw this.#mismatch('more deltas than pages');
        if (pfns.has(pfn)) break;
        pfns.add(pfn);
        starts.push(to);
        to += size;
      }
      if (starts.length === 0) break;
      await this.#apply(bytes, starts, [...pfns]);
      this.#next += starts.length;
      at = to;
    }
    this.#rest = bytes.slice(at);
  }

  async #apply(bytes: Uint8Array, starts: readonly number[], pfns: readonly number[]): Promise<void> {
    const group = this.#group;
    const all = [...runs(pfns, pfns.length)];
    for (const [from, n] of all) {
      const into = group.subarray(from * PAGE_SIZE, (from + n) * PAGE_SIZE);
      await this.#memory.read(into, offsetOf(pfns[from] as number));
    }
    starts.forEach((start, i) => {
      applyDelta(group.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE), bytes, start, this.#offset);
    });
    for (const [from, n] of all) {
      const changed = group.subarray(from * PAGE_SIZE, (from + n) * PAGE_SIZE);
      await this.#memory.write(changed, offsetOf(pfns[from] as number));
    }
  }

  end(compressed: boolean): void {
    if (this.#rest.length > 0) throw this.#mismatch('a delta that is not whole');
    const left = this.#waiting.length - this.#next;
    if (left > 0) throw this.#mismatch(`${left} pages without ${compressed ? 'deltas' : 'contents'}`);
  }

  #mismatch(reason: string): Error {
    const record = legacyChunkName(LegacyChunk.COMPRESSED_DATA);
    return formatError(StreamErrorCode.FIELD, `the checkpoint has ${reason}`, {
      offset: this.#offset,
      record,
    });
  }
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
