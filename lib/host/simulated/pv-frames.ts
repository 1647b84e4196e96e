/**
 * Machine frames as the PV part uses them, page-table entries in them, and walks through them.
 *
 * Two classes have this shape: `MachineMemory` in the host's own thread and `SharedFrames`, the same memory and books
 * in the thread where a guest runs.
 */
import { PAGE_SHIFT, PAGE_SIZE } from '../../abi/pages.js';
import { PTE_PRESENT, type GuestWidth } from '../../abi/pv.js';
import { INVALID_FRAME } from '../host.js';
import {
  M2P_INVALID,
  OWNER_NONE,
  REGION_FRAMES,
  type SharedMachineMemory,
  type SharedRegion,
} from './memory.js';

export interface PvFrames {
  readonly baseMfn: number;
  readonly maxMfn: number;
  readonly compatM2pMfn: number;
  /** Each region in 32-bit words. */
  readonly words: readonly Uint32Array[];
  has(mfn: number): boolean;
  regionOf(mfn: number): number;
  offsetOf(mfn: number): number;
  ownerOf(mfn: number): number;
  pfnOf(mfn: number): number;
  setM2p(mfn: number, pfn: number): void;
  setType(mfn: number, type: number): void;
  typeInfoOf(mfn: number): number;
  setTypeInfo(mfn: number, info: number): void;
  page(mfn: number): Uint8Array;
  pageWords(mfn: number): Uint32Array;
}

const REGION_SHIFT = Math.log2(REGION_FRAMES);
const REGION_MASK = REGION_FRAMES - 1;
const EMPTY_WORDS = new Uint32Array(0);

/** The machine's memory in another thread. It has the regions that existed when it was shared. */
export class SharedFrames implements PvFrames {
  readonly baseMfn: number;
  readonly maxMfn: number;
  readonly compatM2pMfn: number;
  readonly words: readonly Uint32Array[];
  readonly #regions: readonly (SharedRegion | undefined)[];

  constructor(shared: SharedMachineMemory) {
    this.baseMfn = shared.baseMfn;
    this.maxMfn = shared.baseMfn + shared.totalPages - 1;
    this.compatM2pMfn = shared.compatM2pMfn;
    this.#regions = shared.regions;
    this.words = shared.regions.map((region) =>
      region === undefined
        ? EMPTY_WORDS
        : new Uint32Array(region.bytes.buffer, region.bytes.byteOffset, region.bytes.length / 4),
    );
  }

  has(mfn: number): boolean {
    return mfn >= this.baseMfn && mfn <= this.maxMfn;
  }

  regionOf(mfn: number): number {
    return (mfn - this.baseMfn) >>> REGION_SHIFT;
  }

  offsetOf(mfn: number): number {
    return ((mfn - this.baseMfn) & REGION_MASK) << PAGE_SHIFT;
  }

  ownerOf(mfn: number): number {
    if (!this.has(mfn)) return OWNER_NONE;
    const i = mfn - this.baseMfn;
    return this.#regions[i >>> REGION_SHIFT]?.owners[i & REGION_MASK] ?? OWNER_NONE;
  }

  pfnOf(mfn: number): number {
    if (!this.has(mfn)) return INVALID_FRAME;
    const i = mfn - this.baseMfn;
    const pfn = this.#regions[i >>> REGION_SHIFT]?.m2p[i & REGION_MASK] ?? M2P_INVALID;
    return pfn === M2P_INVALID ? INVALID_FRAME : pfn;
  }

  setM2p(mfn: number, pfn: number): void {
    const i = mfn - this.baseMfn;
    this.#region(i).m2p[i & REGION_MASK] = pfn === INVALID_FRAME ? M2P_INVALID : pfn;
  }

  setType(mfn: number, type: number): void {
    const i = mfn - this.baseMfn;
    this.#region(i).types[i & REGION_MASK] = type;
  }

  typeInfoOf(mfn: number): number {
    const i = mfn - this.baseMfn;
    return this.#region(i).typeInfo[i & REGION_MASK] as number;
  }

  setTypeInfo(mfn: number, info: number): void {
    const i = mfn - this.baseMfn;
    this.#region(i).typeInfo[i & REGION_MASK] = info;
  }

  page(mfn: number): Uint8Array {
    const at = this.offsetOf(mfn);
    return this.#region(mfn - this.baseMfn).bytes.subarray(at, at + PAGE_SIZE);
  }

  pageWords(mfn: number): Uint32Array {
    const at = this.offsetOf(mfn) / 4;
    return (this.words[this.regionOf(mfn)] as Uint32Array).subarray(at, at + PAGE_SIZE / 4);
  }

  #region(index: number): SharedRegion {
    const region = this.#regions[index >>> REGION_SHIFT];
    if (region === undefined) throw new RangeError(`mfn ${String(this.baseMfn + index)} is not shared`);
    return region;
  }
}

/*
 * A page-table entry is two words here, low and high, because 64-bit numbers of JavaScript cost an object each:
 *
 *     low   bits 0–11   flags            bits 12–31  frame, bits 0–19
 *     high  bits 0–19   frame, bits 20–39   bits 20–31  flags, bits 52–63 of the entry
 */

/** Flags of the low word. */
export const PTE_RW = 0x2;
export const PTE_USER = 0x4;
export const PTE_ACCESSED = 0x20;
export const PTE_DIRTY = 0x40;
export const PTE_GLOBAL = 0x100;
/** The three bits that the kernel may use as it likes. */
export const PTE_SOFTWARE = 0xe00;
/** Flags of the high word. Bit 52: Xen's mark of a kernel mapping in a 64-bit guest, all of which are user ones. */
export const PTE_HI_GUEST_KERNEL = 0x0010_0000;
export const PTE_HI_NX = 0x8000_0000;

const FRAME_LOW_SPAN = 0x10_0000;

/** Frame number in an entry. */
export function pteFrame(lo: number, hi: number): number {
  return (hi & 0xfffff) * FRAME_LOW_SPAN + (lo >>> 12);
}

/** Low word of an entry. */
export function pteLow(frame: number, flags: number): number {
  return (((frame % FRAME_LOW_SPAN) << 12) | flags) >>> 0;
}

/** High word of an entry. */
export function pteHigh(frame: number, flags: number): number {
  return (Math.floor(frame / FRAME_LOW_SPAN) | flags) >>> 0;
}

/** Number of an address's page in a 48-bit (or 32-bit) address space; the sign extension falls off. */
export function vpnOf(vaddr: bigint, width: GuestWidth): number {
  return Number((vaddr & (width === 8 ? 0xffff_ffff_ffffn : 0xffff_ffffn)) >> 12n);
}

/** Address of a page by its number; inverse of `vpnOf`. */
export function vaddrOf(vpn: number, width: GuestWidth): bigint {
  const low = BigInt(vpn) << 12n;
  return width === 8 && (low & 0x8000_0000_0000n) !== 0n ? low | 0xffff_0000_0000_0000n : low;
}

/** Slot of a page in the table of a level (1…4) that maps it. */
export function slotOf(vpn: number, level: number): number {
  return Math.floor(vpn / 512 ** (level - 1)) % 512;
}

/**
 * Walks from a table down to level `until` and returns the frame found in the entry there (1: the page itself;
 * 2: the level 1 table), INVALID_FRAME if an entry is not present, a superpage or no frame of this machine.
 */
export function walk(frames: PvFrames, top: number, levels: number, vpn: number, until = 1): number {
  let table = top;
  for (let level = levels; level >= until; level--) {
    if (!frames.has(table)) return INVALID_FRAME;
    const words = frames.words[frames.regionOf(table)] as Uint32Array;
    const at = (frames.offsetOf(table) >>> 2) + slotOf(vpn, level) * 2;
    const lo = words[at];
    // A region that nobody has memory in is empty.
    if (lo === undefined || (lo & PTE_PRESENT) === 0) return INVALID_FRAME;
    if (level > 1 && (lo & 0x80) !== 0) return INVALID_FRAME;
    table = pteFrame(lo, words[at + 1] as number);
  }
  return table;
}
