/**
 * Page tables of a PV guest, from pfns to the frames of this host, in place.
 *
 * Entries are read as two 32-bit words, low one first: bit 0 present, bits 51–12 the frame. Entries that are not
 * present are the guest's own business and stay as they are.
 */
import { pageTableLevel } from '../abi/pages.js';
import { type GuestWidth, levelsOf, PTE_PRESENT, PTE_PSE, PTES } from '../abi/pv.js';
import { INVALID_FRAME } from '../host/host.js';
import type { LocalP2m } from './p2m.js';

/** Frame bits of an entry: 20 in the low word, 20 in the high one. */
const LOW_FLAGS = 0xfff;
const LOW_FRAME_SHIFT = 12;
const HIGH_FRAME = 0x000f_ffff;
const LOW_FRAMES = 0x10_0000;
/** Bits of the high word for frames that 32 bits cannot number, and how many frames those can. */
const BEYOND_32 = 0x000f_f000;
const HIGH_FRAMES = 0x1_0000_0000;

/** The frame in an entry: in whole numbers if 32 bits hold it. */
function frameOf(low: number, high: number): number {
  return (high & BEYOND_32) === 0
    ? (((high & HIGH_FRAME) << 20) | (low >>> LOW_FRAME_SHIFT)) >>> 0
    : (high & HIGH_FRAME) * LOW_FRAMES + (low >>> LOW_FRAME_SHIFT);
}

/** True if a guest of this width can have page tables of this type. */
export function isTableOf(type: number, width: GuestWidth): boolean {
  const level = pageTableLevel(type);
  return level > 0 && level <= levelsOf(width);
}

/**
 * Writes the pfns of present entries that have no frame yet to `out`, in order, perhaps twice. Returns how many, or
 * −1 − n if entry n refers to a pfn beyond the guest's or is a superpage, which PV guests cannot have.
 */
export function collectReferences(
  level: number,
  words: Uint32Array,
  at: number,
  p2m: LocalP2m,
  out: Float64Array,
): number {
  let n = 0;
  const refused = level > 1 ? PTE_PSE : 0;
  for (let i = 0, w = at; i < PTES; i++, w += 2) {
    const low = words[w] as number;
    if ((low & PTE_PRESENT) === 0) continue;
    const pfn = frameOf(low, words[w + 1] as number);
    if (pfn > p2m.maxPfn || (low & refused) !== 0) return -1 - i;
    if (p2m.mfnOf(pfn) === INVALID_FRAME) out[n++] = pfn;
  }
  return n;
}

/** Puts the frame of each present entry's pfn in its place; all other bits stay. Every pfn has a frame. */
export function localiseTable(words: Uint32Array, at: number, p2m: LocalP2m): void {
  for (let w = at, end = at + 2 * PTES; w < end; w += 2) {
    const low = words[w] as number;
    if ((low & PTE_PRESENT) === 0) continue;
    const high = words[w + 1] as number;
    const mfn = p2m.mfnOf(frameOf(low, high));
    words[w] = (low & LOW_FLAGS) | (mfn << LOW_FRAME_SHIFT);
    words[w + 1] = (high & ~HIGH_FRAME) | (mfn < HIGH_FRAMES ? mfn >>> 20 : mfn / LOW_FRAMES);
  }
}
