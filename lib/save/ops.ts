/**
 * What differs between the kinds of guests while they are saved; Xen's `xc_sr_save_ops`. The algorithm (save.ts,
 * precopy.ts, batch.ts) is the same for all and calls these steps in this order:
 *
 *     setup · staticData · startOfStream ·
 *     { startOfCheckpoint · checkVmState · pfnsToGfns and normalisePage for each batch · checkVmState after each pass ·
 *       endOfCheckpoint } once for a plain stream · cleanup
 *
 * A throw of any step ends the save: everything is cleaned up and the guest goes on.
 */

/** What `normalisePage` made of a page table. */
export const Normalised = {
  /** Nothing: send the page as it is. */
  AS_IS: 0,
  /** A copy: send that. */
  COPIED: 1,
  /** It names frames that are not the guest's, which a running guest may have for a moment: try again later. */
  NOT_NOW: 2,
} as const;

export type Normalised = (typeof Normalised)[keyof typeof Normalised];

export interface SaveOps {
  /** Type in the domain header (`DomainType`). */
  readonly domainType: number;
  /** Name for messages and reports. */
  readonly guestType: 'pv' | 'hvm';

  /**
   * Once, before a byte is written. Finds out all that needs finding out; what it acquires is given back by `cleanup`,
   * also if it throws half-way. Resolves to the p2m size: the number of pfns that are sent.
   */
  setup(): Promise<number>;

  /** Once. Writes the static data but for STATIC_DATA_END. */
  staticData(): Promise<void>;

  /** Once, after STATIC_DATA_END. Writes what must precede the first page. */
  startOfStream(): Promise<void>;

  /** Before the memory of each checkpoint; for a plain stream once. */
  startOfCheckpoint(): Promise<void>;

  /** After the memory of each checkpoint, the guest suspended. Writes its state. */
  endOfCheckpoint(): Promise<void>;

  /** Before the first pass, after each one, and once the guest is suspended. Throws GuestError if a migration can no longer be right. */
  checkVmState(): Promise<void>;

  /**
   * For each batch: the gfn of each of the first `count` pfns, INVALID_FRAME where there is none. Frames that the
   * guest may be about to get are noted with `SaveContext.defer`. Synchronous: it runs for every page.
   */
  pfnsToGfns(pfns: Float64Array, count: number, gfns: Float64Array): void;

  /**
   * For each page with a page-table type: if it needs rewriting, writes a copy with machine frames replaced by pfns to
   * `out` from word `outAt` on. The page is 1024 words at `page[at]`, in guest memory: it may change while it is read.
   *
   * @param level 1…4
   * @throws GuestError if it can never be sent, or, the guest being suspended, not now
   */
  normalisePage(
    pfn: number,
    level: number,
    page: Uint32Array,
    at: number,
    out: Uint32Array,
    outAt: number,
  ): Normalised;

  /** Once, after success and after failure, whatever was done before. Must release all it can before it throws. */
  cleanup(): Promise<void>;
}
