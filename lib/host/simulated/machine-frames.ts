/**
 * Machine frames and their books, as every thread sees them: where a frame's bytes are, whose it is, which pfn and which
 * type it has. `MachineMemory` gives frames out and takes them back, in the host's own thread.
 *
 * Frame m of the host is page `(m - baseMfn) % 16384` of region `(m - baseMfn) >> 14`, all in shared memory.
 */
import { PAGE_SHIFT, PAGE_SIZE } from '../../abi/pages.js';
import { INVALID_FRAME } from '../host.js';

/** Frames of one region. */
export const REGION_FRAMES = 16384;
export const REGION_SHIFT = 14;
export const REGION_MASK = REGION_FRAMES - 1;
export const PAGE_WORDS = PAGE_SIZE / 4;

/** Owner of a frame that nobody has. */
export const OWNER_NONE = 0xffff;
/** M2P entry of a frame without a pfn, as 32-bit guests see it. */
export const M2P_INVALID = 0xffff_ffff;

/** Stand for regions that do not exist. */
export const EMPTY_BYTES = new Uint8Array(0);
export const EMPTY_WORDS = new Uint32Array(0);

/** Books of one region, over shared memory. */
export interface FrameBooks {
  /** Domid of each frame's owner, or OWNER_NONE. */
  readonly owners: Uint16Array;
  /** pfn of each frame in its owner, or M2P_INVALID. */
  readonly m2p: Uint32Array;
  /** Type nibble of each frame, as XEN_DOMCTL_getpageframeinfo3 tells for PV guests: validated tables and pins. */
  readonly types: Uint8Array;
  /** Xen's type_info of each frame of a PV guest: type, flags and count, as pv-mmu.ts lays them out. */
  readonly typeInfo: Uint32Array;
}

/**
 * Frames and their books as shared memory, to be posted to another thread. Regions that did not exist then are
 * undefined; a domain's regions live as long as the domain.
 */
export interface SharedMachineMemory {
  readonly totalPages: number;
  readonly baseMfn: number;
  readonly compatM2pMfn: number;
  readonly regions: readonly (SharedRegion | undefined)[];
}

export interface SharedRegion extends FrameBooks {
  readonly bytes: Uint8Array;
}

export class MachineFrames<Books extends FrameBooks = FrameBooks> {
  readonly totalPages: number;
  readonly baseMfn: number;
  /** Highest mfn, what XENMEM_maximum_ram_page tells. */
  readonly maxMfn: number;
  /**
   * First frame of the table that 32-bit PV guests see at their hypervisor hole. It belongs to Xen and cannot be
   * mapped; guests only have its number in an L2 entry.
   */
  readonly compatM2pMfn: number;
  /** Bytes of each region, length 0 while the region does not exist. The arrays are live. */
  readonly regions: Uint8Array[] = [];
  /** The same memory in 32-bit words. */
  readonly words: Uint32Array[] = [];
  /** @internal */
  protected readonly books: (Books | undefined)[] = [];

  /** @internal */
  constructor(totalPages: number, baseMfn: number, compatM2pMfn: number) {
    this.totalPages = totalPages;
    this.baseMfn = baseMfn;
    this.maxMfn = baseMfn + totalPages - 1;
    this.compatM2pMfn = compatM2pMfn;
  }

  /** @internal The machine's memory in another thread. It has the regions that existed when it was shared. */
  static of(shared: SharedMachineMemory): MachineFrames {
    const frames = new MachineFrames(shared.totalPages, shared.baseMfn, shared.compatM2pMfn);
    for (const region of shared.regions) {
      const bytes = region?.bytes ?? EMPTY_BYTES;
      frames.books.push(region);
      frames.regions.push(bytes);
      frames.words.push(new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4));
    }
    return frames;
  }

  /** True for numbers of frames that the host has. */
  has(mfn: number): boolean {
    return mfn >= this.baseMfn && mfn <= this.maxMfn;
  }

  /** Index of the frame's region in `regions` and `words`. */
  regionOf(mfn: number): number {
    return (mfn - this.baseMfn) >>> REGION_SHIFT;
  }

  /** Byte offset of the frame in its region. */
  offsetOf(mfn: number): number {
    return ((mfn - this.baseMfn) & REGION_MASK) << PAGE_SHIFT;
  }

  /** Domid of the owner, OWNER_NONE for free frames and numbers that are no frames. */
  ownerOf(mfn: number): number {
    if (!this.has(mfn)) return OWNER_NONE;
    const i = mfn - this.baseMfn;
    return this.books[i >>> REGION_SHIFT]?.owners[i & REGION_MASK] ?? OWNER_NONE;
  }

  /** The M2P: pfn of the frame in its owner, INVALID_FRAME if it has none. */
  pfnOf(mfn: number): number {
    if (!this.has(mfn)) return INVALID_FRAME;
    const i = mfn - this.baseMfn;
    const pfn = this.books[i >>> REGION_SHIFT]?.m2p[i & REGION_MASK] ?? M2P_INVALID;
    return pfn === M2P_INVALID ? INVALID_FRAME : pfn;
  }

  /** Sets the M2P entry of an allocated frame; INVALID_FRAME for none. */
  setM2p(mfn: number, pfn: number): void {
    const i = mfn - this.baseMfn;
    this.book(i).m2p[i & REGION_MASK] = pfn === INVALID_FRAME ? M2P_INVALID : pfn;
  }

  /** Type nibble of an allocated frame (PageType); NOTAB when given out. */
  typeOf(mfn: number): number {
    const i = mfn - this.baseMfn;
    return this.book(i).types[i & REGION_MASK] as number;
  }

  setType(mfn: number, type: number): void {
    const i = mfn - this.baseMfn;
    this.book(i).types[i & REGION_MASK] = type;
  }

  /** Xen's type_info of an allocated frame; 0 when given out. */
  typeInfoOf(mfn: number): number {
    const i = mfn - this.baseMfn;
    return this.book(i).typeInfo[i & REGION_MASK] as number;
  }

  setTypeInfo(mfn: number, info: number): void {
    const i = mfn - this.baseMfn;
    this.book(i).typeInfo[i & REGION_MASK] = info;
  }

  /** @internal The same memory and books for another thread: arrays over shared memory, in an object that can be posted. */
  share(): SharedMachineMemory {
    const { totalPages, baseMfn, compatM2pMfn } = this;
    const regions = this.books.map((book, r) => {
      if (book === undefined) return undefined;
      const { owners, m2p, types, typeInfo } = book;
      return { bytes: this.regions[r] as Uint8Array, owners, m2p, types, typeInfo };
    });
    return { totalPages, baseMfn, compatM2pMfn, regions };
  }

  /** The 4096 bytes of an allocated frame. For single pages, not for loops over guest memory. */
  page(mfn: number): Uint8Array {
    const at = this.offsetOf(mfn);
    return (this.regions[this.regionOf(mfn)] as Uint8Array).subarray(at, at + PAGE_SIZE);
  }

  /** The 1024 words of an allocated frame. */
  pageWords(mfn: number): Uint32Array {
    const at = this.offsetOf(mfn) / 4;
    return (this.words[this.regionOf(mfn)] as Uint32Array).subarray(at, at + PAGE_WORDS);
  }

  /** @internal Books of the region with this frame, by its number from `baseMfn` on. Throws RangeError if it does not exist here. */
  protected book(index: number): Books {
    const book = this.books[index >>> REGION_SHIFT];
    if (book === undefined) throw new RangeError(`mfn ${String(this.baseMfn + index)} is not allocated`);
    return book;
  }
}
