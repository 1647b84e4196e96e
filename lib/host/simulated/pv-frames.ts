/** Page-table entries in machine frames, and walks through them. */
import { PTE_PRESENT, type GuestWidth } from '../../abi/pv.js';
import { INVALID_FRAME } from '../host.js';
import type { MachineFrames } from './machine-frames.js';

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
export function walk(frames: MachineFrames, top: number, levels: number, vpn: number, until = 1): number {
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
