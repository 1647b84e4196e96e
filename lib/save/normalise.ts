/** Page tables of PV guests with machine frames replaced by pfns, so that they mean something on another host. */
import {
  PTE_PRESENT,
  PTE_PSE,
  PTES,
  XEN_L2_COMPAT_FIRST,
  XEN_L4_FIRST,
  XEN_L4_LAST,
  type GuestWidth,
} from '../abi/pv.js';
import { GuestError } from '../errors.js';
import { INVALID_FRAME } from '../host/host.js';
import { SaveErrorCode } from './codes.js';
import { hex } from './guest-frames.js';
import { Normalised } from './ops.js';

/** What normalising needs to know of the guest. */
export interface NormaliseContext {
  readonly width: GuestWidth;
  /** First frame of the M2P that 32-bit guests see, INVALID_FRAME if the host has none. */
  readonly compatFirstMfn: number;
  /** pfn of a machine frame of the guest, else INVALID_FRAME. Takes any number. */
  pfnOf(mfn: number): number;
}

/** Bits of a PTE's high word that belong to the frame (32–51), and how many frames its low word counts. */
const HIGH_FRAME = 0x000f_ffff;
const LOW_FRAMES = 0x10_0000;
/** Bits of it for frames that 32 bits cannot number. */
const BEYOND_32 = 0x000f_f000;
/** Frames that 32 bits can number. */
const HIGH_FRAMES = 0x1_0000_0000;

/**
 * Writes a copy of a page table with pfns to `out`. Slots that belong to Xen become zero: the restoring Xen fills in
 * its own. Entries that are not present pass through. Of the others all bits but the frame are kept.
 *
 * @param level 1…4
 * @param page The table is 1024 words at `page[at]`; a running guest may change it meanwhile
 * @param standsStill The guest is suspended: what is wrong now stays wrong
 * @returns NOT_NOW if an entry names a frame that is not the guest's, and the guest runs
 * @throws GuestError for superpages, for tables that this kind of guest cannot have, and for foreign frames if the
 *   guest stands still
 */
export function normalisePageTable(
  guest: NormaliseContext,
  pfn: number,
  level: number,
  page: Uint32Array,
  at: number,
  out: Uint32Array,
  outAt: number,
  standsStill: boolean,
): Normalised {
  const { width } = guest;
  if (level === 4 && width === 4) {
    throw new GuestError(SaveErrorCode.PAGE_TABLE, `pfn ${hex(pfn)} is a level-4 table in a 32-bit guest`);
  }
  let xenFirst = PTES;
  let xenLast = -1;
  if (width === 8) {
    if (level === 4) [xenFirst, xenLast] = [XEN_L4_FIRST, XEN_L4_LAST];
  } else if (level === 3) {
    // PAE has four level-3 entries; the rest of the page is not the guest's to use.
    [xenFirst, xenLast] = [4, PTES - 1];
  } else if (level === 2 && frameAt(page, at + XEN_L2_COMPAT_FIRST * 2) === guest.compatFirstMfn) {
    [xenFirst, xenLast] = [XEN_L2_COMPAT_FIRST, PTES - 1];
  }

  for (let i = 0; i < PTES; i++) {
    const low = page[at + i * 2] as number;
    const high = page[at + i * 2 + 1] as number;
    const o = outAt + i * 2;
    if (i >= xenFirst && i <= xenLast) {
      out[o] = 0;
      out[o + 1] = 0;
      continue;
    }
    if ((low & PTE_PRESENT) === 0) {
      out[o] = low;
      out[o + 1] = high;
      continue;
    }
    if (level > 1 && (low & PTE_PSE) !== 0) {
      const where = `entry ${i} of the level-${level} table at pfn ${hex(pfn)}`;
      throw new GuestError(SaveErrorCode.SUPERPAGE, `${where} maps a superpage: cannot migrate`);
    }
    const mfn = frameOf(low, high);
    const target = guest.pfnOf(mfn);
    if (target === INVALID_FRAME) {
      if (!standsStill) return Normalised.NOT_NOW;
      const where = `entry ${i} of the level-${level} table at pfn ${hex(pfn)}`;
      throw new GuestError(SaveErrorCode.PAGE_TABLE, `${where}: mfn ${hex(mfn)} is not in the guest's p2m`);
    }
    out[o] = (low & 0xfff) | (target << 12);
    // Whole numbers nearly always, and these are half of the work on a guest's page tables.
    out[o + 1] = (high & ~HIGH_FRAME) | (target < HIGH_FRAMES ? target >>> 20 : target / LOW_FRAMES);
  }
  return Normalised.COPIED;
}

function frameAt(page: Uint32Array, word: number): number {
  return frameOf(page[word] as number, page[word + 1] as number);
}

/** The frame in an entry: in whole numbers if 32 bits hold it. */
function frameOf(low: number, high: number): number {
  return (high & BEYOND_32) === 0
    ? (((high & HIGH_FRAME) << 20) | (low >>> 12)) >>> 0
    : (high & HIGH_FRAME) * LOW_FRAMES + (low >>> 12);
}
