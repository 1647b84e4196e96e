/**
 * PAGE_DATA on its way into the guest: memory for its pfns, the frames mapped, each piece of contents copied once from
 * where the source has it to where the guest has it.
 *
 * A record is taken in batches of at most 1024 pages with contents, Xen's limit for mapping. Records of Xen's own sender
 * are never longer than one batch; the format allows them to be.
 */
import { MAX_BATCH, PAGE_SIZE, pageTypeHasData } from '../abi/pages.js';
import { PTES } from '../abi/pv.js';
import { HypercallError, StreamFormatError } from '../errors.js';
import type { Domain, PageMapping } from '../host/host.js';
import { copyIn, runLength } from '../host/pages.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { PageBytesEvent, PageDataEvent } from '../stream/events.js';
import { RECORD_HEADER_SIZE } from '../stream/framing.js';
import { PAGE_DATA_ENTRY_SIZE, PAGE_DATA_HEAD_SIZE } from '../stream/libxc/constants.js';
import type { PopulatorPort, RestoreOps } from './ops.js';
import { comparePages, VerifyScratch } from './verify.js';

/** Bytes below which reading straight into the guest is not worth a call of its own. */
const MIN_PLACE = 16 * PAGE_SIZE;

/** Mismatched pfns that a result lists. */
const LISTED_MISMATCHES = 16;

export class PageWriter {
  readonly #domain: Domain;
  readonly #ops: RestoreOps;
  readonly #populator: PopulatorPort;
  // The record and the batch of it whose contents are coming.
  #record: PageDataEvent | undefined;
  #nextEntry = 0;
  #mapping: PageMapping | undefined;
  #batchPages = 0;
  /** Page of the record's contents that is the batch's first. */
  #batchStart = 0;
  #batchHasTables = false;
  #ascending = true;
  /** Bytes of the record's contents that were taken. */
  #taken = 0;
  /** What `place` gave out last. */
  #place: Uint8Array | undefined;
  /** Entry of the record that each page of the batch belongs to. */
  readonly #entryOf = new Uint32Array(MAX_BATCH);
  readonly #pfns = new Float64Array(MAX_BATCH);
  readonly #gfns = new Float64Array(MAX_BATCH);
  readonly #references = new Float64Array(PTES);
  #verify: VerifyScratch | undefined;
  #pages = 0;
  #mismatches = 0;
  readonly #mismatched: number[] = [];

  constructor(domain: Domain, ops: RestoreOps, populator: PopulatorPort) {
    this.#domain = domain;
    this.#ops = ops;
    this.#populator = populator;
  }

  /** Pages whose contents were taken so far. */
  get pages(): number {
    return this.#pages;
  }

  /** What comparing found. */
  get mismatches(): { readonly count: number; readonly pfns: readonly number[] } {
    return { count: this.#mismatches, pfns: this.#mismatched };
  }

  get verifying(): boolean {
    return this.#verify !== undefined;
  }

  /** From now on contents are compared with the guest's memory, not written to it. */
  startVerify(): void {
    this.#verify ??= new VerifyScratch();
  }

  /**
   * Takes a record's table: checks its pfns, gives them memory, notes their types and maps the first batch. Returns a
   * promise only where there is something to wait for: a guest with a hole below 4 GiB comes with a thousand records
   * without pages.
   */
  begin(record: PageDataEvent): Promise<void> | undefined {
    this.#checkPfns(record);
    const populating = this.#populator.populateTable(record, record.offset);
    if (populating === undefined && record.dataPages === 0) {
      this.#ops.setPageTypes(record);
      return undefined;
    }
    return this.#begin(record, populating);
  }

  async #begin(record: PageDataEvent, populating: Promise<void> | undefined): Promise<void> {
    if (populating !== undefined) await populating;
    this.#ops.setPageTypes(record);
    if (record.dataPages === 0) return;
    this.#record = record;
    this.#nextEntry = 0;
    this.#batchStart = 0;
    this.#batchPages = 0;
    this.#taken = 0;
    await this.#mapBatch(record);
  }

  #checkPfns(record: PageDataEvent): void {
    const { pfns, count, run } = record;
    const { maxPfn } = this.#ops;
    // Of a run the last one is the highest.
    if (run && (pfns[count - 1] as number) <= maxPfn) return;
    for (let i = 0; i < count; i++) if ((pfns[i] as number) > maxPfn) throw this.#badPfn(record, i);
  }

  /**
   * Where the next bytes of contents belong, as far as that is one piece of mapped memory: who reads them there saves
   * the copy, and then gives this very view to `bytes`. `left` is how much of the record is left, as the reader says.
   */
  place(left: number): Uint8Array | undefined {
    const record = this.#record;
    const mapping = this.#mapping;
    if (record === undefined || mapping === undefined) return undefined;
    if (left !== record.dataPages * PAGE_SIZE - this.#taken) return undefined;
    const at = this.#taken - this.#batchStart * PAGE_SIZE;
    const page = Math.floor(at / PAGE_SIZE);
    const size = runLength(mapping, page, this.#batchPages) * PAGE_SIZE - (at % PAGE_SIZE);
    if (size < MIN_PLACE) return undefined;
    const from = (mapping.offsetOf[page] as number) + (at % PAGE_SIZE);
    const region = mapping.regions[mapping.regionOf[page] as number] as Uint8Array;
    this.#place = region.subarray(from, from + size);
    return this.#place;
  }

  /** Takes a piece of the record's contents. Returns a promise only where there is something to wait for. */
  bytes(event: PageBytesEvent): Promise<void> | undefined {
    const mapping = this.#mapping;
    if (mapping === undefined) throw new TypeError('page contents without a record');
    const at = event.at - this.#batchStart * PAGE_SIZE;
    const room = this.#batchPages * PAGE_SIZE - at;
    this.#taken = event.at + event.bytes.length;
    if (event.bytes.length < room) {
      this.#put(mapping, at, event.bytes);
      return undefined;
    }
    if (event.bytes.length === room && !this.#batchHasTables && this.#verify === undefined) {
      this.#put(mapping, at, event.bytes);
      this.#endBatch();
      if (event.last) {
        this.#record = undefined;
        return undefined;
      }
    }
    return this.#finishBatches(event);
  }

  /** Copies a piece to its place, unless it was read there. */
  #put(mapping: PageMapping, at: number, bytes: Uint8Array): void {
    if (bytes !== this.#place) copyIn(mapping, at, bytes);
    this.#place = undefined;
  }

  /** Lets go of what is mapped. Harmless at any time. */
  release(): void {
    this.#mapping?.release();
    this.#mapping = undefined;
    this.#place = undefined;
    this.#record = undefined;
  }

  /** The way of pieces that end a batch with something to be done, or reach into the next one. */
  async #finishBatches(event: PageBytesEvent): Promise<void> {
    const record = this.#record;
    if (record === undefined) throw new TypeError('page contents without a record');
    let done = this.#batchStart * PAGE_SIZE > event.at ? this.#batchStart * PAGE_SIZE - event.at : 0;
    for (;;) {
      if (this.#mapping === undefined) {
        if (this.#nextEntryWithData(record) === record.count) break;
        await this.#mapBatch(record);
      }
      const at = event.at + done - this.#batchStart * PAGE_SIZE;
      const n = Math.min(event.bytes.length - done, this.#batchPages * PAGE_SIZE - at);
      if (n > 0) {
        const piece = n === event.bytes.length ? event.bytes : event.bytes.subarray(done, done + n);
        this.#put(this.#mapping as PageMapping, at, piece);
      }
      done += n;
      if (at + n < this.#batchPages * PAGE_SIZE) return;
      if (this.#batchHasTables) await this.#localiseBatch(record);
      if (this.#verify !== undefined) await this.#compareBatch(record, this.#verify);
      this.#endBatch();
    }
    this.#record = undefined;
  }

  async #mapBatch(record: PageDataEvent): Promise<void> {
    const { pfns, types, count } = record;
    const ops = this.#ops;
    if (record.run) {
      // All of them have contents, or none: then nobody comes here.
      const from = this.#nextEntry;
      const n = Math.min(count - from, MAX_BATCH);
      ops.pfnsToGfns(pfns.subarray(from, from + n), n, this.#gfns);
      for (let k = 0; k < n; k++) this.#entryOf[k] = from + k;
      this.#batchHasTables = ops.holdsFrames(types[0] as number);
      this.#ascending = true;
      this.#nextEntry = from + n;
      this.#batchPages = n;
    } else this.#pickBatch(record);
    this.#mapping = this.#verify?.mapping ?? (await this.#map(record, 'write'));
  }

  #pickBatch({ pfns, types, count }: PageDataEvent): void {
    const ops = this.#ops;
    let n = 0;
    let previous = -1;
    this.#batchHasTables = false;
    this.#ascending = true;
    let i = this.#nextEntry;
    for (; i < count && n < MAX_BATCH; i++) {
      const type = types[i] as number;
      if (!pageTypeHasData(type)) continue;
      const pfn = pfns[i] as number;
      this.#pfns[n] = pfn;
      this.#entryOf[n++] = i;
      if (pfn <= previous) this.#ascending = false;
      previous = pfn;
      if (ops.holdsFrames(type)) this.#batchHasTables = true;
    }
    ops.pfnsToGfns(this.#pfns, n, this.#gfns);
    this.#nextEntry = i;
    this.#batchPages = n;
  }

  async #map(record: PageDataEvent, access: 'read' | 'write'): Promise<PageMapping> {
    const mapping = await this.#domain.mapFrames(this.#gfns.subarray(0, this.#batchPages), access);
    for (let i = mapping.plain === true ? this.#batchPages : 0; i < this.#batchPages; i++) {
      const error = mapping.errors[i] as number;
      if (error === 0) continue;
      mapping.release();
      const pfn = record.pfns[this.#entryOf[i] as number] as number;
      throw new HypercallError('xenforeignmemory_map', error, `pfn ${hex(pfn)} could not be mapped`);
    }
    return mapping;
  }

  #endBatch(): void {
    this.#mapping?.release();
    this.#mapping = undefined;
    this.#pages += this.#batchPages;
    this.#batchStart += this.#batchPages;
    this.#batchPages = 0;
  }

  /** Puts this host's frames into the batch's page tables, which are complete now. */
  async #localiseBatch(record: PageDataEvent): Promise<void> {
    const mapping = this.#mapping as PageMapping;
    const ops = this.#ops;
    const again = this.#verify === undefined && !this.#ascending ? this.#lastOfPfn(record) : undefined;
    for (let i = 0; i < this.#batchPages; i++) {
      const entry = this.#entryOf[i] as number;
      const type = record.types[entry] as number;
      if (!ops.holdsFrames(type)) continue;
      // A pfn that comes again: both places are the same memory, and only the last contents are there.
      if (again !== undefined && again.get(record.pfns[entry] as number) !== i) continue;
      const words = mapping.words[mapping.regionOf[i] as number] as Uint32Array;
      const at = (mapping.offsetOf[i] as number) / 4;
      const n = ops.collectReferences(type, words, at, this.#references);
      if (n < 0) throw this.#badTable(record, i, -1 - n, words, at);
      if (n > 0) await this.#populator.populate(this.#references, n, undefined, record.offset);
      ops.localisePage(type, words, at);
    }
  }

  #lastOfPfn(record: PageDataEvent): Map<number, number> {
    const last = new Map<number, number>();
    for (let i = 0; i < this.#batchPages; i++) last.set(record.pfns[this.#entryOf[i] as number] as number, i);
    return last;
  }

  async #compareBatch(record: PageDataEvent, scratch: VerifyScratch): Promise<void> {
    const guest = await this.#map(record, 'read');
    try {
      comparePages(scratch.mapping, guest, this.#batchPages, (i) => {
        this.#mismatches++;
        if (this.#mismatched.length < LISTED_MISMATCHES) {
          this.#mismatched.push(record.pfns[this.#entryOf[i] as number] as number);
        }
      });
    } finally {
      guest.release();
    }
  }

  #nextEntryWithData({ types, count }: PageDataEvent): number {
    let i = this.#nextEntry;
    while (i < count && !pageTypeHasData(types[i] as number)) i++;
    return i;
  }

  #badPfn({ offset, pfns }: PageDataEvent, i: number): StreamFormatError {
    return new StreamFormatError(StreamErrorCode.FIELD, `${hex(pfns[i] as number)} is no pfn of the guest`, {
      offset: offset + RECORD_HEADER_SIZE + PAGE_DATA_HEAD_SIZE + i * PAGE_DATA_ENTRY_SIZE,
      record: 'PAGE_DATA',
      path: `pfns[${i}].pfn`,
    });
  }

  #badTable(
    { offset, count, pfns }: PageDataEvent,
    i: number,
    pte: number,
    words: Uint32Array,
    at: number,
  ): StreamFormatError {
    const value = (BigInt(words[at + 2 * pte + 1] as number) << 32n) | BigInt(words[at + 2 * pte] as number);
    const pfn = pfns[this.#entryOf[i] as number] as number;
    const reason = `entry 0x${value.toString(16)} of the page table at pfn ${hex(pfn)} cannot be the guest's`;
    const contents = offset + RECORD_HEADER_SIZE + PAGE_DATA_HEAD_SIZE + count * PAGE_DATA_ENTRY_SIZE;
    return new StreamFormatError(StreamErrorCode.FIELD, reason, {
      offset: contents + (this.#batchStart + i) * PAGE_SIZE + pte * 8,
      record: 'PAGE_DATA',
      path: `pages[${this.#batchStart + i}].entries[${pte}]`,
    });
  }
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
