/** Fills page tables in plain memory, before they are given to the hypervisor. */
import { PTE_PRESENT, type GuestWidth } from '../../abi/pv.js';
import type { MachineFrames } from './machine-frames.js';
import {
  PTE_ACCESSED,
  PTE_DIRTY,
  PTE_HI_GUEST_KERNEL,
  PTE_HI_NX,
  PTE_RW,
  PTE_USER,
  pteFrame,
  pteHigh,
  pteLow,
  slotOf,
} from './pv-frames.js';

/** Low-word flags of an entry that names a table, as Xen leaves them. */
export function tableFlags(width: GuestWidth, level: number): number {
  const common = PTE_PRESENT | PTE_RW | PTE_ACCESSED;
  if (width === 8) return common | PTE_USER | PTE_DIRTY;
  return level === 3 ? common | PTE_USER : common | PTE_DIRTY;
}

/**
 * Low-word flags of a kernel mapping. A 64-bit guest's kernel runs in ring 3 like its processes, so all its mappings
 * are user ones and Xen tells them apart by a bit of its own in the high word.
 */
export function kernelFlags(width: GuestWidth, writable: boolean): number {
  return PTE_PRESENT | PTE_ACCESSED | (width === 8 ? PTE_USER : 0) | (writable ? PTE_RW | PTE_DIRTY : 0);
}

/** High-word flags of a kernel mapping that holds data. */
export function kernelHighFlags(width: GuestWidth): number {
  return width === 8 ? (PTE_HI_NX | PTE_HI_GUEST_KERNEL) >>> 0 : PTE_HI_NX;
}

export class TableBuilder {
  /** Frame of the top table. */
  readonly top: number;
  readonly #frames: MachineFrames;
  readonly #width: GuestWidth;
  readonly #levels: number;
  readonly #take: () => number;
  /** The level 1 table used last, and the pages that it maps: neighbours mostly go into one table. */
  #recent = -1;
  #recentSpan = -1;

  /** `take` gives the frame of the next zeroed page that may become a table. */
  constructor(frames: MachineFrames, width: GuestWidth, levels: number, take: () => number) {
    this.#frames = frames;
    this.#width = width;
    this.#levels = levels;
    this.#take = take;
    this.top = take();
  }

  /** The table of a level for a page, made with those above it if it does not exist. */
  table(vpn: number, level: number): number {
    let table = this.top;
    for (let l = this.#levels; l > level; l--) {
      const words = this.#frames.words[this.#frames.regionOf(table)] as Uint32Array;
      const at = (this.#frames.offsetOf(table) >>> 2) + slotOf(vpn, l) * 2;
      const lo = words[at] as number;
      if ((lo & PTE_PRESENT) === 0) {
        const below = this.#take();
        writeEntry(
          this.#frames,
          table,
          slotOf(vpn, l),
          pteLow(below, tableFlags(this.#width, l)),
          pteHigh(below, 0),
        );
        table = below;
      } else {
        table = pteFrame(lo, words[at + 1] as number);
      }
    }
    return table;
  }

  /** Writes the level 1 entry of a page. */
  set(vpn: number, lo: number, hi: number): void {
    const span = Math.floor(vpn / 512);
    if (span !== this.#recentSpan) {
      this.#recent = this.table(vpn, 1);
      this.#recentSpan = span;
    }
    writeEntry(this.#frames, this.#recent, vpn % 512, lo, hi);
  }

  /** Makes a level 2 entry name a level 1 table that is in use elsewhere too. */
  share(vpn: number, table: number): void {
    const flags = tableFlags(this.#width, 2);
    writeEntry(this.#frames, this.table(vpn, 2), slotOf(vpn, 2), pteLow(table, flags), pteHigh(table, 0));
  }
}

/** Writes an entry of a page that is plain memory. */
export function writeEntry(frames: MachineFrames, table: number, slot: number, lo: number, hi: number): void {
  const words = frames.words[frames.regionOf(table)] as Uint32Array;
  const at = (frames.offsetOf(table) >>> 2) + slot * 2;
  words[at] = lo;
  words[at + 1] = hi;
}
