/**
 * The way of a page: dirty bitmap → types, of many pages at once (lookahead.ts) → batch of up to 1024 pfns → mapped
 * frames → (page tables normalised) → views → one write → frames released.
 *
 * A batch is prepared while the ones before it are being written. All arrays belong to a slot and are used again and
 * again; the only objects made for a batch are the mapping and a few views.
 */
import { Errno, errnoName } from '../abi/errno.js';
import {
  isKnownPageType,
  MAX_BATCH,
  PAGE_SIZE,
  pageTableLevel,
  pageTypeHasData,
  pageTypeName,
  PageType,
} from '../abi/pages.js';
import { HypercallError } from '../errors.js';
import type { PageMapping } from '../host/host.js';
import { copyOut, gatherRuns } from '../host/pages.js';
import { now } from '../job.js';
import { pageDataHeadSize, writePageDataHead, writePageDataRun } from '../stream/libxc/page-data.js';
import type { SaveContext } from './context.js';
import { Lookahead, type Batch } from './lookahead.js';
import { Normalised, type SaveOps } from './ops.js';
import type { Throttle } from './throttle.js';

/** Batches under way at once: one being prepared, two being written. */
const SLOTS = 3;

/**
 * Heads of records that a slot holds. Batches without any page, of which a guest with a hole below 4 GiB has hundreds,
 * go out together with the next one that has pages: a write costs more than such a batch.
 */
const HEADS = 32;

/** A batch in more pieces than this is cheaper to copy together than to write piece by piece. */
const MAX_VIEWS = 64;

/** Longest time, ms, for which batches follow each other without letting timers and sockets have their turn. */
const MAX_TURN_MS = 10;
/** Batches after which that time is looked at: those without pages take microseconds. */
const TURN_BATCHES = 16;

const PAGE_WORDS = PAGE_SIZE / 4;

const Kind = { UNKNOWN: 0, NO_DATA: 1, DATA: 2 } as const;

/** What the page types mean here, as a table: it is asked for every page of the guest. */
const KINDS = Uint8Array.from({ length: 16 }, (_, type) => {
  if (!isKnownPageType(type)) return Kind.UNKNOWN;
  return pageTypeHasData(type) ? Kind.DATA : Kind.NO_DATA;
});

/** One pass over the dirty pages, as it went. */
export interface Pass {
  /** PAGE_DATA entries sent. */
  readonly entries: number;
  /** Those of them that carried page contents. */
  readonly dataPages: number;
  readonly bytes: number;
  readonly ms: number;
  /** Of `ms`, those in which nothing went because of the bandwidth limit. */
  readonly idleMs: number;
}

/** Memory of one batch. */
class Slot {
  /** gfn of each entry with data, which entry it is, and what became of it (`Normalised`). */
  readonly dataGfns = new Float64Array(MAX_BATCH);
  readonly entryOf = new Uint16Array(MAX_BATCH);
  readonly fates = new Uint8Array(MAX_BATCH);
  /** Records that wait to be written, up to the table of the last one; `filled` bytes of them. */
  readonly heads = new Uint8Array(HEADS * pageDataHeadSize(MAX_BATCH));
  filled = 0;
  /** Settles when the slot may be filled again; never rejects. */
  busy: Promise<void> | undefined;
  #staging: Uint32Array | undefined;

  /** Room for copies of all pages: page j of the mapping goes to page j. Made when first needed. */
  get staging(): Uint32Array {
    this.#staging ??= new Uint32Array(MAX_BATCH * PAGE_WORDS);
    return this.#staging;
  }

  stagingBytes(fromPage: number, toPage: number): Uint8Array {
    return new Uint8Array(this.staging.buffer, fromPage * PAGE_SIZE, (toPage - fromPage) * PAGE_SIZE);
  }
}

/** Sends pages of one guest. */
export class PageSender {
  /** PAGE_DATA entries written so far by type nibble. */
  readonly entriesByType = new Float64Array(16);
  /** Of them, those with contents. */
  dataPages = 0;
  readonly #context: SaveContext;
  readonly #ops: SaveOps;
  readonly #slots: Slot[] = [];
  readonly #lookahead: Lookahead;
  readonly #throttle: Throttle;
  /** Number of the slot that the next batch goes to. */
  #current = 0;
  #failure: { readonly reason: unknown } | undefined;
  #turnBegan = now();
  /** Batches since it was last looked at. */
  #turnBatches = 0;

  constructor(context: SaveContext) {
    this.#context = context;
    this.#ops = context.ops;
    this.#throttle = context.steering.throttle;
    this.#lookahead = new Lookahead(context);
    for (let i = 0; i < SLOTS; i++) this.#slots.push(new Slot());
  }

  /**
   * Sends all pages of the context's dirty bitmap, ascending, then looks whether the guest is still one that can be
   * saved. `expected` is about how many there are, for the reports.
   */
  async sendDirty(expected: number, { throttled }: { throttled: boolean }): Promise<Pass> {
    const { control, out, steering } = this.#context;
    const began = now();
    const bytesBefore = out.bytes;
    const dataPagesBefore = this.dataPages;
    let entries = 0;
    let idleMs = 0;
    await this.#lookahead.begin();
    for (;;) {
      if (throttled && !this.#throttle.ready(steering.limits.maxBytesPerSecond))
        idleMs += await this.#waitForThrottle();
      // A thousand batches without pages are made in one go: nothing has to be waited for.
      const slot = this.#freeSlot() ?? (await this.#openSlot());
      const batch = this.#lookahead.take() ?? (await this.#lookahead.next());
      control.throwIfCancelled();
      if (batch === undefined) break;
      if (batch.uniform === PageType.XTAB) this.#addBlank(slot, batch);
      else await this.#sendBatch(slot, batch);
      entries += batch.count;
      control.note({
        transferred: out.bytes,
        remaining: Math.max(0, expected - entries),
        pages: this.dataPages,
      });
    }
    this.#flush();
    await this.#drain();
    control.note({ transferred: out.bytes, remaining: 0, pages: this.dataPages });
    await this.#ops.checkVmState();
    control.throwIfCancelled();
    return {
      entries,
      dataPages: this.dataPages - dataPagesBefore,
      bytes: out.bytes - bytesBefore,
      ms: now() - began,
      idleMs,
    };
  }

  /** Waits until nothing is under way any more, and ignores how it ended. For the clean-up, the sink being aborted. */
  async settle(): Promise<void> {
    for (const slot of this.#slots) await slot.busy;
    await this.#lookahead.settle();
  }

  async #drain(): Promise<void> {
    for (const slot of this.#slots) await slot.busy;
    this.#throwIfFailed();
  }

  #throwIfFailed(): void {
    this.#context.control.throwIfCancelled();
    if (this.#failure !== undefined) throw this.#failure.reason;
  }

  /** The slot to prepare the next batch in, if it is free, nothing has failed and it is nobody else's turn. */
  #freeSlot(): Slot | undefined {
    const slot = this.#slots[this.#current] as Slot;
    if (slot.busy !== undefined || this.#failure !== undefined) return undefined;
    return ++this.#turnBatches < TURN_BATCHES ? slot : undefined;
  }

  /** The slot to prepare the next batch in: the one that is not yet full, or the next one, once it is free. */
  async #openSlot(): Promise<Slot> {
    const slot = this.#slots[this.#current] as Slot;
    await slot.busy;
    this.#turnBatches = 0;
    // A host and a sink that answer at once would keep everybody else from running, cancel() included.
    if (now() - this.#turnBegan >= MAX_TURN_MS) {
      await new Promise((resolve) => setImmediate(resolve));
      this.#turnBegan = now();
    }
    this.#throwIfFailed();
    return slot;
  }

  /** Waits for the bandwidth limit. Returns for how many ms nothing went. */
  async #waitForThrottle(): Promise<number> {
    const { steering, control, out } = this.#context;
    // First what is under way: its time is the line's, not the limit's, and tells how fast the line is.
    await this.#drain();
    control.note({ transferred: out.bytes });
    const began = now();
    await this.#throttle.wait(() => steering.limits.maxBytesPerSecond, control.signal);
    control.throwIfCancelled();
    return now() - began;
  }

  /** Adds a batch without pages to those that wait, and starts to write them if no other one has room behind it. */
  #addBlank(slot: Slot, batch: Batch): void {
    this.entriesByType[PageType.XTAB] = (this.entriesByType[PageType.XTAB] as number) + batch.count;
    this.#addHead(slot, batch, true);
    if (isFull(slot)) this.#write(slot, [slot.heads], undefined);
  }

  /** Prepares a batch, and starts to write it if it has pages or no other one has room behind it. */
  async #sendBatch(slot: Slot, batch: Batch): Promise<void> {
    const { control, domain } = this.#context;
    const whole = batch.uniform === PageType.NOTAB;
    const dataCount = whole ? this.#takeAll(batch) : this.#pickData(slot, batch);
    const views: Uint8Array[] = [slot.heads];
    let mapping: PageMapping | undefined;
    let asTold = whole;
    if (dataCount > 0) {
      mapping = await domain.mapFrames(whole ? batch.gfns : first(slot.dataGfns, dataCount), 'read');
      asTold = whole && mapping.plain === true;
      let inPlace = false;
      try {
        control.throwIfCancelled();
        if (whole && !asTold) pickAll(slot, batch);
        const plain = asTold || this.#judgePages(slot, batch, mapping, dataCount);
        inPlace = plain
          ? gatherRuns(mapping, 0, dataCount, views)
          : gatherPieces(slot, mapping, dataCount, views);
        if (!inPlace) gatherCopies(slot, mapping, dataCount, views);
      } finally {
        // Views of guest memory need it until they are written; copies, and a failure, do not.
        if (!inPlace) mapping.release();
      }
      if (!inPlace) mapping = undefined;
    }
    this.#addHead(slot, batch, asTold);
    if (dataCount > 0 || isFull(slot)) this.#write(slot, views, mapping);
  }

  /** Writes what stands before the pages of a batch. `uniform`: its types are still all the same. */
  #addHead(slot: Slot, { pfns, types, count, uniform }: Batch, isUniform: boolean): void {
    const head = slot.heads.subarray(slot.filled);
    const from = pfns[0] as number;
    // Ascending, so these are all pfns in between.
    const inRow = (pfns[count - 1] as number) - from === count - 1;
    slot.filled +=
      isUniform && inRow
        ? writePageDataRun(head, from, uniform, count)
        : writePageDataHead(head, pfns, types, count);
  }

  /** Starts to write what the open slot holds, if anything. */
  #flush(): void {
    const slot = this.#slots[this.#current] as Slot;
    if (slot.filled > 0) this.#write(slot, [slot.heads], undefined);
  }

  /** Starts to write a slot; `views[0]` is its heads. The slot, and `mapping`, are free when that is over. */
  #write(slot: Slot, views: Uint8Array[], mapping: PageMapping | undefined): void {
    views[0] = slot.heads.subarray(0, slot.filled);
    let size = 0;
    for (const view of views) size += view.length;
    this.#throttle.spend(size);
    slot.filled = 0;
    slot.busy = this.#context.out.write(views).then(
      () => {
        slot.busy = undefined;
        mapping?.release();
      },
      (reason: unknown) => {
        slot.busy = undefined;
        this.#failure ??= { reason };
        mapping?.release();
      },
    );
    this.#current = (this.#current + 1) % SLOTS;
  }

  /** Counts the entries by type and collects those that have data. Returns how many. */
  #pickData({ dataGfns, entryOf }: Slot, { pfns, types, gfns, count }: Batch): number {
    const { entriesByType } = this;
    let n = 0;
    // By runs of one type: of most guests a batch is one.
    for (let i = 0; i < count;) {
      const type = types[i] as number;
      let end = i + 1;
      while (end < count && types[end] === type) end++;
      entriesByType[type] = (entriesByType[type] as number) + end - i;
      const kind = KINDS[type];
      if (kind === Kind.UNKNOWN) {
        const what = `type 0x${type.toString(16)} of pfn ${hex(pfns[i])} does not exist`;
        throw new HypercallError('XEN_DOMCTL_getpageframeinfo3', Errno.EINVAL, what);
      }
      for (let k = i; kind === Kind.DATA && k < end; k++) {
        dataGfns[n] = gfns[k] as number;
        entryOf[n++] = k;
      }
      i = end;
    }
    this.dataPages += n;
    return n;
  }

  /** The same for a batch of plain pages alone. What `pickData` collects is not collected. */
  #takeAll({ count }: Batch): number {
    this.entriesByType[PageType.NOTAB] = (this.entriesByType[PageType.NOTAB] as number) + count;
    this.dataPages += count;
    return count;
  }

  /**
   * Decides what becomes of each mapped page. Those that cannot be sent now become XTAB and are left for the final
   * pass; in the final pass that is an error. Returns true if all pages go out as they are.
   */
  #judgePages(slot: Slot, batch: Batch, mapping: PageMapping, dataCount: number): boolean {
    const { entryOf, fates } = slot;
    const { types, pfns } = batch;
    const { errors, words, regionOf, offsetOf } = mapping;
    let plain = true;
    for (let j = 0; j < dataCount; j++) {
      const entry = entryOf[j] as number;
      const type = types[entry] as number;
      let fate: Normalised = Normalised.AS_IS;
      if (errors[j] !== 0) {
        fate = this.#unmappable(slot, batch, j, errors[j] as number);
      } else if (type !== PageType.NOTAB) {
        const page = words[regionOf[j] as number] as Uint32Array;
        const at = (offsetOf[j] as number) / 4;
        const level = pageTableLevel(type);
        fate = this.#ops.normalisePage(pfns[entry] as number, level, page, at, slot.staging, j * PAGE_WORDS);
      }
      fates[j] = fate;
      if (fate === Normalised.AS_IS) continue;
      plain = false;
      if (fate === Normalised.NOT_NOW) this.#postpone(batch, entry);
    }
    return plain;
  }

  /** The entry goes out without its page, which is left for the final pass. */
  #postpone({ types, pfns }: Batch, entry: number): void {
    const { entriesByType } = this;
    const type = types[entry] as number;
    entriesByType[type] = (entriesByType[type] as number) - 1;
    entriesByType[PageType.XTAB] = (entriesByType[PageType.XTAB] as number) + 1;
    this.dataPages--;
    types[entry] = PageType.XTAB;
    this.#context.defer(pfns[entry] as number);
  }

  /** A running guest may have given a frame away since its type was asked; a suspended one cannot. */
  #unmappable(slot: Slot, { pfns, types }: Batch, j: number, errno: number): Normalised {
    if (!this.#context.guestSuspended) return Normalised.NOT_NOW;
    const entry = slot.entryOf[j] as number;
    const type = pageTypeName(types[entry] as number);
    const what = `${errnoName(errno)}: mapping of pfn ${hex(pfns[entry])} (gfn ${hex(slot.dataGfns[j])}, ${type}) failed`;
    throw new HypercallError('xenforeignmemory_map', errno, what);
  }
}

/** Collects all entries of a batch as those with data. */
function pickAll(slot: Slot, { gfns, count }: Batch): void {
  slot.dataGfns.set(gfns);
  for (let k = 0; k < count; k++) slot.entryOf[k] = k;
}

/** No further record has room in the slot. */
function isFull(slot: Slot): boolean {
  return slot.filled + pageDataHeadSize(MAX_BATCH) > slot.heads.length;
}

/**
 * Views of the pages of a batch that is no plain row: frames here and there, copies of page tables, pages left out.
 * False if they would be too many pieces.
 */
function gatherPieces(slot: Slot, mapping: PageMapping, dataCount: number, views: Uint8Array[]): boolean {
  for (let j = 0; j < dataCount;) {
    const end = sameFate(slot, j, dataCount);
    const fate = slot.fates[j];
    if (fate === Normalised.COPIED) views.push(slot.stagingBytes(j, end));
    else if (fate === Normalised.AS_IS && !gatherRuns(mapping, j, end, views)) return false;
    if (views.length > MAX_VIEWS) return false;
    j = end;
  }
  return true;
}

/** Views of copies of all pages. Those of page tables are in their place already. */
function gatherCopies(slot: Slot, mapping: PageMapping, dataCount: number, views: Uint8Array[]): void {
  views.length = 1;
  let kept = 0;
  for (let j = 0; j < dataCount;) {
    const end = sameFate(slot, j, dataCount);
    const fate = slot.fates[j];
    if (fate === Normalised.AS_IS) copyOut(mapping, j, end, slot.staging, j * PAGE_WORDS);
    if (fate === Normalised.NOT_NOW) {
      if (kept < j) views.push(slot.stagingBytes(kept, j));
      kept = end;
    }
    j = end;
  }
  if (kept < dataCount) views.push(slot.stagingBytes(kept, dataCount));
}

function sameFate(slot: Slot, from: number, dataCount: number): number {
  const { fates } = slot;
  let end = from + 1;
  while (end < dataCount && fates[end] === fates[from]) end++;
  return end;
}

function first(array: Float64Array, count: number): Float64Array {
  return count === array.length ? array : array.subarray(0, count);
}

function hex(frame: number | undefined): string {
  return frame === undefined || frame < 0 ? 'INVALID' : `0x${frame.toString(16)}`;
}
