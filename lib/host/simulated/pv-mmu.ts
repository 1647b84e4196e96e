/**
 * What the hypervisor does about a PV guest's page tables: types of frames with counts, validation when a frame
 * becomes a table, pins, updates of single entries. As Xen's arch/x86/mm.c and arch/x86/pv/mm.c do it.
 *
 * type_info of a frame, 32 bits:
 *
 *     bits 0-23   uses of the frame as this type; 0: the type may change
 *     bits 24-26  type, see `FrameType`
 *     bit 27      level 2 table of the last gigabyte of a 32-bit guest, which ends in entries of Xen
 *     bit 28      pinned
 *     bit 29      the table's entries are checked and counted
 *
 * A type outlives its last use until the frame gets another one, and XEN_DOMCTL_getpageframeinfo3 tells it so long.
 *
 * Only one thread at a time changes the types of a domain's frames: its worker while it runs, else the host's.
 */
import { Errno } from '../../abi/errno.js';
import { PageType } from '../../abi/pages.js';
import {
  levelsOf,
  PTE_PRESENT,
  PTE_PSE,
  PTES,
  XEN_L2_COMPAT_FIRST,
  XEN_L4_FIRST,
  XEN_L4_LAST,
  type GuestWidth,
} from '../../abi/pv.js';
import type { MachineFrames } from './machine-frames.js';
import { PTE_ACCESSED, PTE_DIRTY, PTE_HI_NX, PTE_RW, pteFrame, pteHigh, pteLow } from './pv-frames.js';

/** Types in type_info. 1…4 are page tables of that level. */
export const FrameType = { NONE: 0, L1: 1, L2: 2, L3: 3, L4: 4, SEGMENT: 5, WRITABLE: 6 } as const;

const COUNT = 0x00ff_ffff;
const TYPE_SHIFT = 24;
const TYPE = 0x0700_0000;
const PAE_XEN = 0x0800_0000;
const PINNED = 0x1000_0000;
const VALIDATED = 0x2000_0000;

/** Slots of a 32-bit guest's level 3 table; the rest of the page is cleared by Xen. */
const PAE_L3_SLOTS = 4;
/** Its slot whose table ends in entries of Xen. */
const PAE_XEN_SLOT = 3;
/** Flags of Xen's own entries: the table of all frames for guests to read, and what guests cannot see. */
const XEN_READ_FLAGS = PTE_PRESENT | 0x4 | PTE_ACCESSED;
const XEN_FLAGS = PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY;
/** L4 slot in which a table maps itself. */
const XEN_LINEAR_SLOT = 258;
/** Distance of the frames under Xen's other L4 slots from the first one of the compat M2P. */
const XEN_L4_FRAMES_BELOW = 0x8000;
/** Bytes of the compat M2P under one L2 entry, in entries of 4 bytes. */
const M2P_ENTRIES_PER_SLOT = 0x20_0000 / 4;
/** Frames under one L2 entry. */
const SLOT_FRAMES = 512;

/** What the MMU needs of the domain. */
export interface PvMmuDomain {
  readonly domid: number;
  readonly width: GuestWidth;
  readonly frames: MachineFrames;
  /** The guest's frame of this pfn was written, or became a table, or stopped being one. */
  markDirty(pfn: number): void;
}

/**
 * Page tables of one PV domain. It has no state of its own, so each thread may have its own `PvMmu` of a domain.
 * Methods return 0 or a positive errno, and leave the reason in `reason`.
 */
export class PvMmu {
  reason = '';
  readonly #domain: PvMmuDomain;
  readonly #frames: MachineFrames;
  readonly #domid: number;

  constructor(domain: PvMmuDomain) {
    this.#domain = domain;
    this.#frames = domain.frames;
    this.#domid = domain.domid;
  }

  /** Level that a base pointer's table has: 4, or 3 for a 32-bit guest. */
  get topLevel(): 3 | 4 {
    return levelsOf(this.#domain.width);
  }

  /** Current type of a frame (`FrameType`) and how often it is used as such. */
  typeOf(mfn: number): number {
    return (this.#frames.typeInfoOf(mfn) & TYPE) >>> TYPE_SHIFT;
  }
  usesOf(mfn: number): number {
    return this.#frames.typeInfoOf(mfn) & COUNT;
  }
  isPinned(mfn: number): boolean {
    return (this.#frames.typeInfoOf(mfn) & PINNED) !== 0;
  }

  /**
   * Takes one use of a frame as a type. A frame without uses changes to it, a table after all its entries were
   * found good; a frame with uses of another type refuses.
   */
  get(mfn: number, type: number, paeXen = false): number {
    const frames = this.#frames;
    if (frames.ownerOf(mfn) !== this.#domid)
      return this.#refuse(mfn, `is not a frame of domain ${this.#domid}`);
    const want = (type << TYPE_SHIFT) | (paeXen ? PAE_XEN : 0);
    const info = frames.typeInfoOf(mfn);
    if ((info & COUNT) !== 0) {
      if ((info & (TYPE | PAE_XEN)) !== want) {
        return this.#refuse(mfn, `is in use as ${describe(info)}, not free to become ${describe(want)}`);
      }
      if (type <= FrameType.L4 && (info & VALIDATED) === 0)
        return this.#refuse(mfn, 'is a table within itself');
      frames.setTypeInfo(mfn, info + 1);
      return 0;
    }
    frames.setTypeInfo(mfn, want | 1);
    frames.setType(mfn, type <= FrameType.L4 ? type : PageType.NOTAB);
    if (type > FrameType.L4) return 0;
    const error = this.#validate(mfn, type, paeXen);
    if (error !== 0) {
      frames.setTypeInfo(mfn, 0);
      frames.setType(mfn, PageType.NOTAB);
      return error;
    }
    frames.setTypeInfo(mfn, want | VALIDATED | 1);
    this.#touch(mfn);
    return 0;
  }

  /** Gives back one use. */
  put(mfn: number): void {
    const frames = this.#frames;
    const info = frames.typeInfoOf(mfn);
    if ((info & COUNT) > 1) {
      frames.setTypeInfo(mfn, info - 1);
      return;
    }
    const type = (info & TYPE) >>> TYPE_SHIFT;
    if ((info & VALIDATED) !== 0) this.#releaseEntries(mfn, type, PTES);
    frames.setTypeInfo(mfn, info & (TYPE | PAE_XEN));
    if (type <= FrameType.L4) this.#touch(mfn);
  }

  /** MMUEXT_PIN_L1…L4_TABLE. */
  pin(mfn: number, level: number): number {
    if (level < 1 || level > this.topLevel) return this.#refuse(mfn, `cannot be pinned at level ${level}`);
    const error = this.get(mfn, level);
    if (error !== 0) return error;
    if (this.isPinned(mfn)) {
      this.put(mfn);
      return this.#refuse(mfn, 'is pinned already');
    }
    this.#frames.setTypeInfo(mfn, (this.#frames.typeInfoOf(mfn) | PINNED) >>> 0);
    this.#frames.setType(mfn, level | PageType.PINNED);
    return 0;
  }

  /** MMUEXT_UNPIN_TABLE. */
  unpin(mfn: number): number {
    if (this.#frames.ownerOf(mfn) !== this.#domid || !this.isPinned(mfn))
      return this.#refuse(mfn, 'is not pinned');
    const info = this.#frames.typeInfoOf(mfn) & ~PINNED;
    this.#frames.setTypeInfo(mfn, info);
    this.#frames.setType(mfn, (info & TYPE) >>> TYPE_SHIFT);
    this.put(mfn);
    return 0;
  }

  /** MMU_NORMAL_PT_UPDATE of one entry of a table in use. The new entry's use is taken before the old one's is given back. */
  update(table: number, slot: number, lo: number, hi: number): number {
    const frames = this.#frames;
    if (frames.ownerOf(table) !== this.#domid) return this.#refuse(table, 'is not a frame of the domain');
    const info = frames.typeInfoOf(table);
    const level = (info & TYPE) >>> TYPE_SHIFT;
    if ((info & VALIDATED) === 0) return this.#refuse(table, 'is not a page table');
    const paeXen = (info & PAE_XEN) !== 0;
    if (this.#isXenSlot(level, slot, paeXen)) return this.#refuse(table, `slot ${slot} belongs to Xen`);
    if (this.#domain.width === 4 && level === 3 && slot === PAE_XEN_SLOT) {
      return this.#refuse(table, 'the last level 3 entry of a table in use cannot change');
    }
    const error = this.#getEntry(lo, hi, level, slot);
    if (error !== 0) return error;
    const words = frames.words[frames.regionOf(table)] as Uint32Array;
    const at = (frames.offsetOf(table) >>> 2) + slot * 2;
    const oldLo = words[at] as number;
    const oldHi = words[at + 1] as number;
    // Not present while the halves do not belong together.
    if ((oldLo & PTE_PRESENT) !== 0) words[at] = 0;
    words[at + 1] = hi;
    words[at] = lo;
    this.#putEntry(oldLo, oldHi, level);
    this.#touch(table);
    return 0;
  }

  #refuse(mfn: number, why: string): number {
    this.reason = `frame 0x${mfn.toString(16)} ${why}`;
    return Errno.EINVAL;
  }

  /** Xen marks a table as written when it becomes one and when it stops being one. */
  #touch(mfn: number): void {
    const pfn = this.#frames.pfnOf(mfn);
    if (pfn >= 0) this.#domain.markDirty(pfn);
  }

  /** True for slots whose contents are Xen's business. */
  #isXenSlot(level: number, slot: number, paeXen: boolean): boolean {
    if (this.#domain.width === 8) return level === 4 && slot >= XEN_L4_FIRST && slot <= XEN_L4_LAST;
    if (level === 3) return slot >= PAE_L3_SLOTS;
    return level === 2 && paeXen && slot >= XEN_L2_COMPAT_FIRST;
  }

  #validate(mfn: number, level: number, paeXen: boolean): number {
    const frames = this.#frames;
    const words = frames.words[frames.regionOf(mfn)] as Uint32Array;
    const base = frames.offsetOf(mfn) >>> 2;
    if (this.#domain.width === 4 && level === 3) {
      // All 512 entries are real to the processor, so Xen clears those that a 32-bit guest does not have.
      words.fill(0, base + PAE_L3_SLOTS * 2, base + PTES * 2);
      if (((words[base + PAE_XEN_SLOT * 2] as number) & PTE_PRESENT) === 0) {
        return this.#refuse(mfn, 'is a level 3 table without its last entry');
      }
    }
    for (let slot = 0; slot < PTES; slot++) {
      const lo = words[base + slot * 2] as number;
      if ((lo & PTE_PRESENT) === 0 || this.#isXenSlot(level, slot, paeXen)) continue;
      const error = this.#getEntry(lo, words[base + slot * 2 + 1] as number, level, slot);
      if (error === 0) continue;
      this.reason += `, entry ${slot} of level ${level} table 0x${mfn.toString(16)}`;
      this.#releaseEntries(mfn, level, slot);
      return error;
    }
    if (this.#domain.width === 4 && level === 3) {
      const at = base + PAE_XEN_SLOT * 2;
      const last = pteFrame(words[at] as number, words[at + 1] as number);
      if (this.usesOf(last) !== 1) {
        this.#releaseEntries(mfn, level, PTES);
        return this.#refuse(last, 'is the last level 2 table of two address spaces');
      }
    }
    if (level === 4) this.#fillXenL4(mfn, words, base);
    if (paeXen) this.#fillXenL2(words, base);
    return 0;
  }

  /** Takes the use that an entry of a table means. */
  #getEntry(lo: number, hi: number, level: number, slot: number): number {
    if ((lo & PTE_PRESENT) === 0) return 0;
    const mfn = pteFrame(lo, hi);
    if (level > 1) {
      if ((lo & PTE_PSE) !== 0) return this.#refuse(mfn, 'would be a superpage');
      return this.get(mfn, level - 1, this.#domain.width === 4 && level === 3 && slot === PAE_XEN_SLOT);
    }
    if ((lo & PTE_RW) !== 0) return this.get(mfn, FrameType.WRITABLE);
    if (this.#frames.ownerOf(mfn) !== this.#domid) {
      return this.#refuse(mfn, `is not a frame of domain ${this.#domid}`);
    }
    return 0;
  }

  #putEntry(lo: number, hi: number, level: number): void {
    if ((lo & PTE_PRESENT) !== 0 && (level > 1 || (lo & PTE_RW) !== 0)) this.put(pteFrame(lo, hi));
  }

  /** Gives back the uses of the entries below slot `end`. */
  #releaseEntries(mfn: number, level: number, end: number): void {
    const frames = this.#frames;
    const words = frames.words[frames.regionOf(mfn)] as Uint32Array;
    const base = frames.offsetOf(mfn) >>> 2;
    const paeXen = (frames.typeInfoOf(mfn) & PAE_XEN) !== 0;
    for (let slot = 0; slot < end; slot++) {
      const lo = words[base + slot * 2] as number;
      if ((lo & PTE_PRESENT) === 0 || this.#isXenSlot(level, slot, paeXen)) continue;
      this.#putEntry(lo, words[base + slot * 2 + 1] as number, level);
    }
  }

  /** The sixteen entries that Xen keeps in each level 4 table: the M2P to read, the table itself, Xen's own. */
  #fillXenL4(mfn: number, words: Uint32Array, base: number): void {
    for (let slot = XEN_L4_FIRST; slot <= XEN_L4_LAST; slot++) {
      const own = this.#frames.compatM2pMfn - XEN_L4_FRAMES_BELOW - slot;
      const frame = slot === XEN_LINEAR_SLOT ? mfn : own;
      words[base + slot * 2] = pteLow(frame, slot === XEN_L4_FIRST ? XEN_READ_FLAGS : XEN_FLAGS);
      words[base + slot * 2 + 1] = pteHigh(frame, slot === XEN_L4_FIRST ? 0 : PTE_HI_NX);
    }
  }

  /** The compat M2P, mapped in superpages that a 32-bit guest may only read. */
  #fillXenL2(words: Uint32Array, base: number): void {
    const slots = Math.ceil((this.#frames.maxMfn + 1) / M2P_ENTRIES_PER_SLOT);
    for (let slot = XEN_L2_COMPAT_FIRST; slot < PTES; slot++) {
      const k = slot - XEN_L2_COMPAT_FIRST;
      const frame = this.#frames.compatM2pMfn - k * SLOT_FRAMES;
      words[base + slot * 2] = k < slots ? pteLow(frame, XEN_READ_FLAGS | PTE_PSE) : 0;
      words[base + slot * 2 + 1] = k < slots ? pteHigh(frame, PTE_HI_NX) : 0;
    }
  }
}

function describe(info: number): string {
  const type = (info & TYPE) >>> TYPE_SHIFT;
  if (type === FrameType.WRITABLE) return 'writable memory';
  if (type === FrameType.SEGMENT) return 'a descriptor table';
  return `a level ${type} table`;
}
