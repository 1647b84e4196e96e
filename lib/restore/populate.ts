/** Giving memory to a domain that is being restored: which pfns have some, and superpages where the stream allows. */
import { Errno } from '../abi/errno.js';
import { pageTypeNeedsMemory } from '../abi/pages.js';
import { HypercallError, StreamFormatError } from '../errors.js';
import { type Domain, INVALID_FRAME } from '../host/host.js';
import { StreamErrorCode } from '../stream/codes.js';
import type { PageTypes, RestoreOps } from './ops.js';

/** pfns of one piece of the populated bitmap: 128 MiB of guest memory in 4 KiB. */
export const AREA_PFNS = 32768;
const AREA_SHIFT = 15;
/** A word of the bitmap with all bits. */
const ALL = 0xffff_ffff;
/** 4 KiB frames of a superpage. */
const SUPERPAGE = 512;
/** pfns gathered before they are populated; room for a batch and the beginning of a superpage. */
const PENDING_MAX = 2048;
/** Superpages gathered before they are populated. */
const SUPERS_MAX = 32;

const NO_WORDS = new Uint32Array(0);

/**
 * Pieces of the bitmap that a stream may make: twice what the domain's memory needs side by side, and `spare` for
 * memory that lies scattered over its address space. Keeps hostile pfns from taking memory here that nobody granted.
 */
export function maxAreas(maxPages: number, spare: number): number {
  return 2 * Math.ceil(maxPages / AREA_PFNS) + spare;
}

/** A set of pfns below 2^40, in pieces that are made when the first pfn of them is added. */
export class PopulatedSet {
  readonly #areas = new Map<number, Uint32Array>();
  readonly #maxAreas: number;
  // The area asked for last: nearly always the next one, too.
  #index = -1;
  #words: Uint32Array = NO_WORDS;
  #size = 0;

  constructor(areas: number) {
    this.#maxAreas = areas;
  }

  /** Number of members. */
  get size(): number {
    return this.#size;
  }

  has(pfn: number): boolean {
    if (!this.#select(areaOf(pfn))) return false;
    const bit = pfn & (AREA_PFNS - 1);
    return ((this.#words[bit >>> 5] as number) & (1 << (bit & 31))) !== 0;
  }

  /** Adds a pfn. False if it was a member, undefined if there may be no more areas. */
  add(pfn: number): boolean | undefined {
    if (!this.#make(areaOf(pfn))) return undefined;
    const bit = pfn & (AREA_PFNS - 1);
    const word = this.#words[bit >>> 5] as number;
    const mask = 1 << (bit & 31);
    if ((word & mask) !== 0) return false;
    this.#words[bit >>> 5] = word | mask;
    this.#size++;
    return true;
  }

  /**
   * Adds `count` pfns in a row at once. Returns `count`, 0 if all of them were members, or −1, with nothing added, if
   * they have to be looked at one by one.
   */
  addRun(first: number, count: number): number {
    const from = first & (AREA_PFNS - 1);
    const to = from + count;
    // Xen's batches begin at multiples of 1024 wherever a guest's memory is in one piece.
    if (((from | to) & 31) !== 0 || to > AREA_PFNS || !this.#make(areaOf(first))) return -1;
    const words = this.#words;
    const had = words[from >>> 5] as number;
    if (had !== 0 && had !== ALL) return -1;
    for (let w = from >>> 5; w < to >>> 5; w++) if (words[w] !== had) return -1;
    if (had !== 0) return 0;
    words.fill(ALL, from >>> 5, to >>> 5);
    this.#size += count;
    return count;
  }

  /** Selects an area, made if there is none. False if there may be no more. */
  #make(index: number): boolean {
    if (this.#select(index)) return true;
    if (this.#areas.size >= this.#maxAreas) return false;
    this.#index = index;
    this.#words = new Uint32Array(AREA_PFNS / 32);
    this.#areas.set(index, this.#words);
    return true;
  }

  #select(index: number): boolean {
    if (index === this.#index) return true;
    const words = this.#areas.get(index);
    if (words === undefined) return false;
    this.#index = index;
    this.#words = words;
    return true;
  }
}

/** The area of a pfn. */
function areaOf(pfn: number): number {
  return pfn < 0x1_0000_0000 ? pfn >>> AREA_SHIFT : Math.floor(pfn / AREA_PFNS);
}

/** Whom the populator tells what the pfns got. */
export type GfnTaker = Pick<RestoreOps, 'setGfns' | 'setGfnRun'>;

/**
 * Populates pfns that have no memory. Where 512 of them in a row, within one call, fill an aligned 2 MiB, it asks for a
 * superpage and falls back to 4 KiB frames if there is none.
 */
export class Populator {
  readonly #domain: Domain;
  readonly #taker: GfnTaker;
  readonly #set: PopulatedSet;
  readonly #pending = new Float64Array(PENDING_MAX);
  readonly #frames = new Float64Array(PENDING_MAX);
  readonly #supers = new Float64Array(SUPERS_MAX);
  #superpages = 0;

  constructor(domain: Domain, areas: number, taker: GfnTaker) {
    this.#domain = domain;
    this.#set = new PopulatedSet(areas);
    this.#taker = taker;
  }

  /** Pages that got memory. */
  get pages(): number {
    return this.#set.size;
  }

  /** Superpages among them. */
  get superpages(): number {
    return this.#superpages;
  }

  has(pfn: number): boolean {
    return this.#set.has(pfn);
  }

  /**
   * Gives memory to those of the first `count` pfns that have none and, if `types` are given, whose type needs it.
   * Exact: throws HypercallError (ENOMEM) unless all get theirs. Throws StreamFormatError if they are scattered wider
   * than any guest's. `offset` is that of the record which asks, for that error.
   */
  async populate(
    pfns: Float64Array,
    count: number,
    types: Uint8Array | undefined,
    offset: number,
  ): Promise<void> {
    const pending = this.#pending;
    let n = 0;
    let supers = 0;
    let run = 0;
    for (let i = 0; i < count; i++) {
      if (types !== undefined && !pageTypeNeedsMemory(types[i] as number)) continue;
      const pfn = pfns[i] as number;
      const added = this.#set.add(pfn);
      if (added === undefined) throw this.#scattered(i, pfn, offset);
      if (!added) continue;
      run = n > 0 && pending[n - 1] === pfn - 1 ? run + 1 : 1;
      pending[n++] = pfn;
      if ((pfn & (SUPERPAGE - 1)) === SUPERPAGE - 1 && run >= SUPERPAGE) {
        n -= SUPERPAGE;
        run = 0;
        this.#supers[supers++] = pfn - (SUPERPAGE - 1);
        if (supers === SUPERS_MAX) {
          await this.#allocateSupers(supers);
          supers = 0;
        }
      }
      if (n === PENDING_MAX) {
        // What may become a superpage stays.
        const keep = Math.min(run, (pfn & (SUPERPAGE - 1)) + 1);
        await this.#allocate(pending, n - keep);
        pending.copyWithin(0, n - keep, n);
        n = keep;
      }
    }
    if (supers > 0) await this.#allocateSupers(supers);
    if (n > 0) await this.#allocate(pending, n);
  }

  /**
   * As `populate`, for the table of a PAGE_DATA record. A run costs nothing for each page, as far as the hypervisor and
   * the kind of guest let it. Undefined if there is nothing to wait for.
   */
  populateTable({ pfns, types, count, run }: PageTypes, offset: number): Promise<void> | undefined {
    if (!run) return this.populate(pfns, count, types, offset);
    if (!pageTypeNeedsMemory(types[0] as number)) return undefined;
    const first = pfns[0] as number;
    const added = this.#set.addRun(first, count);
    if (added < 0) return this.populate(pfns, count, types, offset);
    return added === 0 ? undefined : this.#populateRun(first, count);
  }

  async #populateRun(first: number, count: number): Promise<void> {
    const pending = this.#pending;
    const end = first + count;
    for (let pfn = first; pfn < end;) {
      let supers = 0;
      while (supers < SUPERS_MAX && (pfn & (SUPERPAGE - 1)) === 0 && pfn + SUPERPAGE <= end) {
        this.#supers[supers++] = pfn;
        pfn += SUPERPAGE;
      }
      if (supers > 0) await this.#allocateSupers(supers);
      let n = 0;
      while (n < PENDING_MAX && pfn < end && ((pfn & (SUPERPAGE - 1)) !== 0 || pfn + SUPERPAGE > end)) {
        pending[n++] = pfn++;
      }
      if (n > 0) await this.#allocate(pending, n);
    }
  }

  async #allocate(pfns: Float64Array, n: number): Promise<void> {
    const frames = this.#frames.subarray(0, n);
    frames.set(pfns.subarray(0, n));
    const done = await this.#domain.populate(frames);
    if (done !== n) throw await this.#outOfMemory(n - done);
    const missing = frames.indexOf(INVALID_FRAME);
    if (missing >= 0) throw noFrame(pfns[missing] as number);
    this.#taker.setGfns(pfns, frames, n);
  }

  async #allocateSupers(n: number): Promise<void> {
    const bases = this.#supers.slice(0, n);
    const frames = bases.slice();
    let done = 0;
    try {
      done = await this.#domain.populate(frames, 9);
    } catch (error) {
      // Refused, as a domain without the right to large extents is: 4 KiB frames may still do.
      if (!(error instanceof HypercallError)) throw error;
    }
    this.#superpages += done;
    for (let i = 0; i < done; i++) {
      const base = bases[i] as number;
      if (frames[i] === INVALID_FRAME) throw noFrame(base);
      this.#taker.setGfnRun(base, frames[i] as number, SUPERPAGE);
    }
    const small = new Float64Array(done < n ? SUPERPAGE : 0);
    for (let i = done; i < n; i++) {
      const base = bases[i] as number;
      for (let k = 0; k < SUPERPAGE; k++) small[k] = base + k;
      await this.#allocate(small, SUPERPAGE);
    }
  }

  /** The usual reason of a failed restore, with the numbers that tell whose limit it was. */
  async #outOfMemory(missing: number): Promise<HypercallError> {
    let limits = '';
    try {
      const { totPages, maxPages } = await this.#domain.info();
      limits = `: the domain has ${totPages} of at most ${maxPages} pages`;
    } catch {
      // Only the message gets poorer.
    }
    return new HypercallError(
      'XENMEM_populate_physmap',
      Errno.ENOMEM,
      `${missing} pages could not be allocated${limits}`,
    );
  }

  #scattered(i: number, pfn: number, offset: number): StreamFormatError {
    return new StreamFormatError(
      StreamErrorCode.LIMIT,
      `pfn ${hex(pfn)}: pages are scattered wider than the domain's memory allows`,
      { offset, record: 'PAGE_DATA', path: `pfns[${i}].pfn` },
    );
  }
}

function noFrame(pfn: number): HypercallError {
  return new HypercallError('XENMEM_populate_physmap', Errno.ENOMEM, `no frame for pfn ${hex(pfn)}`);
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
