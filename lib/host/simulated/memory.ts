/**
 * Machine memory of a simulated host: page frames, their owners, and the machine-to-physical table.
 *
 * Frames live in regions of 64 MiB of shared memory, made when first needed, so that guests in worker threads and the
 * toolstack see the same bytes. About 12 bytes of bookkeeping for each page, in typed arrays; no object stands for a page.
 */
import { PAGE_SIZE } from '../../abi/pages.js';
import { INVALID_FRAME } from '../host.js';
import {
  EMPTY_BYTES,
  EMPTY_WORDS,
  M2P_INVALID,
  MachineFrames,
  OWNER_NONE,
  PAGE_WORDS,
  REGION_FRAMES,
  REGION_MASK,
  REGION_SHIFT,
  type FrameBooks,
} from './machine-frames.js';
import { mix32, Xoshiro } from './prng.js';

/** Frames of a 2 MiB superpage. */
const SUPERPAGE = 512;

/**
 * Lowest mfn of any simulated host: above the pfns of every guest that fits, so that a frame number of one kind taken
 * for the other never happens to work.
 */
const LOWEST_BASE = 0x100_0000;

export interface MachineMemoryOptions {
  /** Frames of the host. */
  readonly totalPages: number;
  /** Decides the first mfn and the order of scattered frames, so that two hosts differ. */
  readonly seed?: number | undefined;
  /** First mfn; by default derived from the seed. */
  readonly baseMfn?: number | undefined;
}

/** Books of one region, as only the host's own thread needs them. */
interface Region extends FrameBooks {
  /** 1: the frame was used before and has to be scrubbed when it is given out again. */
  readonly stale: Uint8Array;
  /** Frames that the region has; less than REGION_FRAMES only in the last one. */
  readonly size: number;
  free: number;
  /** All frames from this index on are free. */
  bump: number;
}

export class MachineMemory extends MachineFrames<Region> {
  readonly #rng: Xoshiro;
  #free: number;
  /** Candidates for scattered allocation, shuffled; frames taken by a run meanwhile are passed over. */
  #pool: Uint32Array = EMPTY_WORDS;
  #poolAt = 0;
  /** Regions from this number on have been in the pool since the last time all were tried. */
  #poolRegion: number;

  /** @internal Made by its host. */
  constructor(options: MachineMemoryOptions) {
    const seed = options.seed ?? 1;
    const baseMfn = options.baseMfn ?? LOWEST_BASE + (mix32(seed) & 0xff) * REGION_FRAMES;
    super(options.totalPages, baseMfn, baseMfn - 0x1000);
    this.#free = this.totalPages;
    this.#rng = new Xoshiro(seed);
    const count = Math.ceil(this.totalPages / REGION_FRAMES);
    for (let r = 0; r < count; r++) {
      this.regions.push(EMPTY_BYTES);
      this.words.push(EMPTY_WORDS);
      this.books.push(undefined);
    }
    this.#poolRegion = count;
  }

  get freePages(): number {
    return this.#free;
  }

  /**
   * Takes `n` frames for `owner`, side by side as far as memory allows, and writes their numbers to `out[at…]`. They
   * read as zeros. Returns how many there were: fewer than `n` only if the host has no more.
   */
  allocRun(owner: number, n: number, out: Float64Array | Uint32Array, at = 0): number {
    let done = 0;
    while (done < n && this.#free > 0) {
      const want = Math.min(n - done, REGION_FRAMES);
      const first = this.#findRun(want, 1);
      if (first === INVALID_FRAME) return done + this.#gather(owner, n - done, out, at + done);
      this.#take(first, want, owner);
      for (let k = 0; k < want; k++) out[at + done + k] = this.baseMfn + first + k;
      done += want;
    }
    return done;
  }

  /** Takes 512 frames side by side, the first aligned to 512. INVALID_FRAME if there are no such. */
  allocSuperpage(owner: number): number {
    const first = this.#findRun(SUPERPAGE, SUPERPAGE);
    if (first === INVALID_FRAME) return INVALID_FRAME;
    this.#take(first, SUPERPAGE, owner);
    return this.baseMfn + first;
  }

  /** Takes `n` frames in seeded pseudo-random order, as a PV guest gets them on a host that has been up for long. */
  allocScattered(owner: number, n: number, out: Float64Array | Uint32Array, at = 0): number {
    let done = 0;
    while (done < n && this.#free > 0) {
      if (this.#poolAt === this.#pool.length) this.#refillPool();
      const i = this.#pool[this.#poolAt++] as number;
      if (this.#bookAt(i >>> REGION_SHIFT).owners[i & REGION_MASK] !== OWNER_NONE) continue;
      this.#take(i, 1, owner);
      out[at + done++] = this.baseMfn + i;
    }
    return done;
  }

  /** Gives back a frame. Its contents stay until it is given out again, and are scrubbed then. */
  free(mfn: number): void {
    const i = mfn - this.baseMfn;
    const book = this.book(i);
    const k = i & REGION_MASK;
    if (book.owners[k] === OWNER_NONE) return;
    book.owners[k] = OWNER_NONE;
    book.m2p[k] = M2P_INVALID;
    book.types[k] = 0;
    book.typeInfo[k] = 0;
    book.stale[k] = 1;
    book.free++;
    this.#free++;
    // The region stays and is used again. Shared memory counts for nothing with the garbage collector, so a host that
    // dropped and made regions for many guests would grow until something else makes it run.
    if (book.free === book.size) book.bump = 0;
  }

  /** Lets go of regions in which nobody has a frame. */
  trim(): void {
    for (let r = 0; r < this.books.length; r++) {
      const book = this.books[r];
      if (book === undefined || book.free < book.size) continue;
      this.books[r] = undefined;
      this.regions[r] = EMPTY_BYTES;
      this.words[r] = EMPTY_WORDS;
    }
  }

  /** Calls `visit` with each frame that `owner` has, ascending. */
  forEachOwned(owner: number, visit: (mfn: number) => void): void {
    for (let r = 0; r < this.books.length; r++) {
      const book = this.books[r];
      if (book === undefined) continue;
      const { owners, size } = book;
      for (let k = 0; k < size; k++) {
        if (owners[k] === owner) visit(this.baseMfn + r * REGION_FRAMES + k);
      }
    }
  }

  #bookAt(r: number): Region {
    const present = this.books[r];
    if (present !== undefined) return present;
    const size = Math.min(REGION_FRAMES, this.totalPages - r * REGION_FRAMES);
    const memory = new SharedArrayBuffer(size * PAGE_SIZE);
    this.regions[r] = new Uint8Array(memory);
    this.words[r] = new Uint32Array(memory);
    const book: Region = {
      owners: new Uint16Array(new SharedArrayBuffer(size * 2)).fill(OWNER_NONE),
      m2p: new Uint32Array(new SharedArrayBuffer(size * 4)).fill(M2P_INVALID),
      types: new Uint8Array(new SharedArrayBuffer(size)),
      typeInfo: new Uint32Array(new SharedArrayBuffer(size * 4)),
      stale: new Uint8Array(size),
      size,
      free: size,
      bump: 0,
    };
    this.books[r] = book;
    return book;
  }

  /** Index of the first of `n` ≤ REGION_FRAMES free frames inside one region, aligned; INVALID_FRAME if none. */
  #findRun(n: number, align: number): number {
    // The frames above a region's highest used one are the quick case, and the usual one.
    for (let r = 0; r < this.books.length; r++) {
      const book = this.books[r];
      const bump = book === undefined ? 0 : Math.ceil(book.bump / align) * align;
      const size = book?.size ?? Math.min(REGION_FRAMES, this.totalPages - r * REGION_FRAMES);
      if (bump + n <= size) return r * REGION_FRAMES + bump;
    }
    for (let r = 0; r < this.books.length; r++) {
      const book = this.books[r];
      if (book === undefined || book.free < n) continue;
      const { owners } = book;
      for (let k = 0; k + n <= book.size;) {
        let j = k;
        while (j < k + n && owners[j] === OWNER_NONE) j++;
        if (j === k + n) return r * REGION_FRAMES + k;
        k = Math.ceil((j + 1) / align) * align;
      }
    }
    return INVALID_FRAME;
  }

  /** Takes up to `n` free frames wherever they are. */
  #gather(owner: number, n: number, out: Float64Array | Uint32Array, at: number): number {
    let done = 0;
    for (let r = 0; r < this.books.length && done < n; r++) {
      const book = this.#bookAt(r);
      for (let k = 0; k < book.size && done < n; k++) {
        if (book.owners[k] !== OWNER_NONE) continue;
        this.#take(r * REGION_FRAMES + k, 1, owner);
        out[at + done++] = this.baseMfn + r * REGION_FRAMES + k;
      }
    }
    return done;
  }

  /** Hands out frames that are free and inside one region. */
  #take(first: number, n: number, owner: number): void {
    const r = first >>> REGION_SHIFT;
    const book = this.#bookAt(r);
    const from = first & REGION_MASK;
    const words = this.words[r] as Uint32Array;
    for (let k = from; k < from + n; k++) {
      book.owners[k] = owner;
      if (book.stale[k] === 0) continue;
      words.fill(0, k * PAGE_WORDS, (k + 1) * PAGE_WORDS);
      book.stale[k] = 0;
    }
    book.free -= n;
    this.#free -= n;
    if (book.bump < from + n) book.bump = from + n;
  }

  /** Fills the pool with the free frames of the next region, from the top down, while runs go from the bottom up. */
  #refillPool(): void {
    for (let tries = 0; tries <= this.books.length; tries++) {
      if (this.#poolRegion === 0) this.#poolRegion = this.books.length;
      const r = --this.#poolRegion;
      const book = this.#bookAt(r);
      if (book.free === 0) continue;
      const pool = new Uint32Array(book.free);
      let n = 0;
      for (let k = 0; k < book.size; k++) {
        if (book.owners[k] === OWNER_NONE) pool[n++] = r * REGION_FRAMES + k;
      }
      for (let i = n - 1; i > 0; i--) {
        const j = this.#rng.below(i + 1);
        const swap = pool[i] as number;
        pool[i] = pool[j] as number;
        pool[j] = swap;
      }
      this.#pool = pool;
      this.#poolAt = 0;
      return;
    }
    throw new RangeError('no free frame');
  }
}
