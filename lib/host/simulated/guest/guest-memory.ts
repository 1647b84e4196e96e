/** A guest's memory as its program sees it, from a worker or from the main thread: pfns to words of shared memory. */

/** What has to be handed to a worker so that it can see the guest's memory. All shared, nothing copied. */
export interface SharedGuest {
  /** Regions of machine memory; undefined where the host has none. */
  readonly regions: readonly (SharedArrayBuffer | undefined)[];
  readonly baseMfn: number;
  /** mfn of each pfn, 0 where there is none. */
  readonly physmap: Uint32Array;
  /** Bit n of word n/32: pfn n was written. */
  readonly dirty: Uint32Array;
}

const REGION_SHIFT = 14;
const REGION_MASK = (1 << REGION_SHIFT) - 1;
const PAGE_WORDS_SHIFT = 10;

export class GuestMemory {
  /** Word offset of the page that `locate` found. */
  at = 0;
  readonly #regions: readonly (Uint32Array | undefined)[];
  readonly #baseMfn: number;
  readonly #physmap: Uint32Array;
  readonly #dirty: Uint32Array;
  /** Stands for pages that do not exist: what is written there is gone. */
  readonly #nowhere = new Uint32Array(1 << PAGE_WORDS_SHIFT);

  constructor(shared: SharedGuest) {
    this.#regions = shared.regions.map((memory) =>
      memory === undefined ? undefined : new Uint32Array(memory),
    );
    this.#baseMfn = shared.baseMfn;
    this.#physmap = shared.physmap;
    this.#dirty = shared.dirty;
  }

  /** Returns the words that hold the page, and leaves its offset in `at`. */
  locate(pfn: number): Uint32Array {
    const index = (this.#physmap[pfn] ?? 0) - this.#baseMfn;
    const region = index < 0 ? undefined : this.#regions[index >>> REGION_SHIFT];
    if (region === undefined) {
      this.at = 0;
      return this.#nowhere.fill(0);
    }
    this.at = (index & REGION_MASK) << PAGE_WORDS_SHIFT;
    return region;
  }

  /**
   * Marks a page as written. Always after the write and always by an atomic operation: whoever takes the mark and
   * then reads the page sees the write, or the page is marked again.
   */
  markDirty(pfn: number): void {
    Atomics.or(this.#dirty, pfn >>> 5, 1 << (pfn & 31));
  }
}
