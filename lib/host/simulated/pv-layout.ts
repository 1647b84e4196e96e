/**
 * Where a modelled PV guest has things: a pure function of what kind of guest it is, so that the guest's kernel needs
 * to keep no more than that in memory.
 *
 *     pfn                                     what
 *     16, 17, 18, 19                          start_info, xenstore ring, console ring, kernel data page
 *     20…                                     RAM map (a bit for each pfn), then one GDT page for each vcpu
 *     1/2 of the direct map…                  processes: 8 pages each, see pv-process.ts
 *     3/4 of the direct map…                  balloon area: half of it ballooned out
 *     a few elsewhere                         ballooned out
 *     …end of the direct map                  p2m leaves, frame lists, kernel page tables
 *     all others                              the workload's
 *
 *     address                64-bit                  32-bit
 *     direct map             0xffff888000000000      0xc0000000 (at most 704 MiB)
 *     p2m, linear layout     0xffffc90000000000      0xed000000
 *     p2m, not aligned       0xffffc9003fff4000      0xed1f4000
 *     kernel data page       0xffffffff81000000      0xf5600000
 *     shared info            0xffffffffff5fd000      0xf57ff000
 *     process text, heap     0x400000, 0x800000      0x400000, 0x800000
 *
 * The two p2m addresses that are not aligned to what one level 2 (64-bit: level 3 too) entry maps make the p2m of a
 * small guest span two of them.
 */
import { fppOf, levelsOf, PTES, type GuestWidth } from '../../abi/pv.js';
import { UsageError } from '../../errors.js';
import { Xoshiro } from './prng.js';
import { vpnOf } from './pv-frames.js';
import type { FrameRange } from './pv-types.js';

/** What makes one guest's layout differ from another's. */
export interface PvShape {
  readonly width: GuestWidth;
  /** pfns of the guest. */
  readonly pages: number;
  readonly vcpus: number;
  readonly p2m: 'linear' | 'tree';
  /** Linear layout: the p2m begins inside what a level 2 entry maps. */
  readonly unalignedP2m: boolean;
  /**
   * Unused entries after the p2m that all name the same empty table, as Linux has them; arch.max_pfn then counts far
   * more pfns than the guest has. Linear: level 2 entries; tree: entries of the frame list list.
   */
  readonly p2mTail: number;
  readonly seed: number;
}

/** Smallest guest: 4 MiB. */
export const MIN_PV_PAGES = 1024;
/** Largest guest: what one level 3 table of direct map holds, and what a 32-bit one can address. */
export const MAX_PV_PAGES = { 4: 0x100_0000, 8: 0x800_0000 } as const;

const FIRST_SPECIAL = 16;
/** Pages of one process: six tables and two records of what its last two tables ought to hold. */
export const PROCESS_PAGES = 8;
const BALLOON_MOST = 64;
const HOLES = 4;
const LOWMEM_PAGES_32 = 0x2c000;

const VADDR = {
  4: {
    direct: 0xc000_0000n,
    p2m: 0xed00_0000n,
    p2mUnaligned: 0xed1f_4000n,
    data: 0xf560_0000n,
    shared: 0xf57f_f000n,
  },
  8: {
    direct: 0xffff_8880_0000_0000n,
    p2m: 0xffff_c900_0000_0000n,
    p2mUnaligned: 0xffff_c900_3fff_4000n,
    data: 0xffff_ffff_8100_0000n,
    shared: 0xffff_ffff_ff5f_d000n,
  },
} as const;

/** pfns, ranges of them, and numbers of virtual pages (vpn). */
export interface PvLayout extends PvShape {
  readonly levels: 3 | 4;
  /** p2m entries in one page. */
  readonly fpp: number;
  readonly startInfo: number;
  readonly store: number;
  readonly console: number;
  readonly data: number;
  readonly ramMap: FrameRange;
  /** One page for each vcpu. */
  readonly gdt: FrameRange;
  /** `PROCESS_PAGES` for each. */
  readonly processes: FrameRange;
  readonly processCount: number;
  /** Kept from the workload: the kernel gives these pages back and takes them again. */
  readonly balloon: FrameRange;
  /** Pages of the p2m, in order; then, if there is a tail, the leaf that stands for all missing ones. */
  readonly leaves: FrameRange;
  /** Leaves that hold entries of pfns below `pages`. */
  readonly leafCount: number;
  /** pfn of the leaf without entries, -1 if there is none. */
  readonly missingLeaf: number;
  /** Tree: the frame list list, then the frame lists, the last one for the tail if there is one. */
  readonly lists: FrameRange;
  /** Kernel page tables; the first is the top one. */
  readonly tables: FrameRange;
  /** Ballooned out from the start, ascending. */
  readonly holes: readonly FrameRange[];
  /** arch.max_pfn: pfns that the p2m has entries for, tail included. */
  readonly p2mEntries: number;
  /** Pages in the direct map: all, or a 32-bit guest's low memory. */
  readonly directPages: number;
  readonly directVpn: number;
  readonly p2mVpn: number;
  /** p2m pages mapped there, 0 in tree layout. */
  readonly p2mMapped: number;
  readonly dataVpn: number;
  readonly sharedVpn: number;
}

/** Number of the kernel data page in an address space of this width. */
export function dataVpnOf(width: GuestWidth): number {
  return vpnOf(VADDR[width].data, width);
}

/** Address of the p2m, what arch.p2m_vaddr tells. */
export function p2mVaddr(layout: PvShape): bigint {
  const { p2m, p2mUnaligned } = VADDR[layout.width];
  return layout.unalignedP2m ? p2mUnaligned : p2m;
}

/** Lays a guest out. Throws UsageError if it is too small or too large. */
export function layoutOf(shape: PvShape): PvLayout {
  const { width, pages, vcpus } = shape;
  if (!Number.isSafeInteger(pages) || pages < MIN_PV_PAGES || pages > MAX_PV_PAGES[width]) {
    throw new UsageError(
      `a simulated PV guest has ${MIN_PV_PAGES} to ${MAX_PV_PAGES[width]} pages, not ${pages}`,
    );
  }
  const fpp = fppOf(width);
  const directPages = width === 8 ? pages : Math.min(pages, LOWMEM_PAGES_32);
  const directVpn = vpnOf(VADDR[width].direct, width);
  const p2mVpn = vpnOf(p2mVaddr(shape), width);
  const dataVpn = dataVpnOf(width);
  const sharedVpn = vpnOf(VADDR[width].shared, width);

  const leafCount = Math.ceil(pages / fpp);
  const linear = shape.p2m === 'linear';
  const tail = shape.p2mTail;
  const mapped = linear ? p2mPagesMapped(p2mVpn, leafCount, tail) : 0;
  const p2mEntries =
    tail === 0 ? pages : linear ? mapped * fpp : (Math.ceil(pages / fpp ** 2) + tail) * fpp ** 2;

  // From the top of the direct map down: kernel tables, frame lists, p2m.
  const tables = tableCount(shape, [
    { vpn: directVpn, count: directPages, own: directPages },
    // The tail's level 2 entries name one table: the first of the tail.
    { vpn: p2mVpn, count: mapped, own: tail > 0 && linear ? p2mPagesMapped(p2mVpn, leafCount, 1) : mapped },
    { vpn: dataVpn, count: 1, own: 1 },
    { vpn: sharedVpn, count: 1, own: 1 },
  ]);
  const tablesAt = directPages - tables;
  const listCount = linear ? 0 : 1 + Math.ceil(leafCount / fpp) + (tail > 0 ? 1 : 0);
  const listsAt = tablesAt - listCount;
  const allLeaves = leafCount + (tail > 0 ? 1 : 0);
  const leavesAt = listsAt - allLeaves;

  const ramMapAt = FIRST_SPECIAL + 4;
  const ramMapCount = Math.ceil(pages / 8 / 4096);
  const gdtAt = ramMapAt + ramMapCount;
  const processCount = Math.min(16, Math.max(4, Math.floor(pages / 1024)));
  const processesAt = Math.floor(directPages / 2);
  const balloon = {
    first: Math.floor((directPages * 3) / 4),
    count: Math.min(BALLOON_MOST, Math.floor(pages / 64)),
  };
  if (gdtAt + vcpus >= processesAt || balloon.first + balloon.count >= leavesAt) {
    throw new UsageError(`${pages} pages are too few for a PV guest of this kind`);
  }
  return {
    ...shape,
    levels: levelsOf(width),
    fpp,
    startInfo: FIRST_SPECIAL,
    store: FIRST_SPECIAL + 1,
    console: FIRST_SPECIAL + 2,
    data: FIRST_SPECIAL + 3,
    ramMap: { first: ramMapAt, count: ramMapCount },
    gdt: { first: gdtAt, count: vcpus },
    processes: { first: processesAt, count: processCount * PROCESS_PAGES },
    processCount,
    balloon,
    leaves: { first: leavesAt, count: allLeaves },
    leafCount,
    missingLeaf: tail > 0 ? leavesAt + leafCount : -1,
    lists: { first: listsAt, count: listCount },
    tables: { first: tablesAt, count: tables },
    holes: holesOf(shape, balloon, gdtAt + vcpus, processesAt),
    p2mEntries,
    directPages,
    directVpn,
    p2mVpn,
    p2mMapped: mapped,
    dataVpn,
    sharedVpn,
  };
}

/** Ranges that the kernel uses, ascending; the workload gets what lies between them. */
export function kernelRanges(layout: PvLayout): FrameRange[] {
  const { gdt, processes, balloon, leaves, directPages } = layout;
  return [
    { first: 0, count: gdt.first + gdt.count },
    processes,
    balloon,
    // A page on each side stays out of use: a frame list that is read too far shows.
    { first: leaves.first - 1, count: directPages - leaves.first + 1 },
  ];
}

/** Page of the p2m that has the entry of a pfn. */
export function leafOf(layout: PvLayout, pfn: number): number {
  return layout.leaves.first + Math.floor(pfn / layout.fpp);
}

/** pfn mapped at page `i` of the virtual p2m. */
export function p2mPage(layout: PvLayout, i: number): number {
  return i < layout.leafCount ? layout.leaves.first + i : layout.missingLeaf;
}

/** p2m pages with a tail: up to the end of the last level 2 entry, then as many entries more. */
function p2mPagesMapped(vpn: number, leafCount: number, tail: number): number {
  if (tail === 0) return leafCount;
  return (Math.ceil((vpn + leafCount) / PTES) + tail) * PTES - vpn;
}

/** Virtual pages `vpn`…`vpn + count − 1`, the first `own` of them through level 1 tables of their own. */
interface Run {
  readonly vpn: number;
  readonly count: number;
  readonly own: number;
}

/** Page tables that map these runs, the top one included. */
function tableCount(shape: PvShape, runs: readonly Run[]): number {
  let total = 1;
  for (let level = 1; level < levelsOf(shape.width); level++) {
    const span = PTES ** level;
    const seen = new Set<number>();
    for (const { vpn, count, own } of runs) {
      if (count === 0) continue;
      const last = vpn + (level === 1 ? own : count) - 1;
      for (let i = Math.floor(vpn / span); i <= Math.floor(last / span); i++) seen.add(i);
    }
    total += seen.size;
  }
  return total;
}

/** Part of the balloon area, and a few seeded runs between the low pages and the processes. */
function holesOf(shape: PvShape, balloon: FrameRange, from: number, to: number): FrameRange[] {
  const rng = new Xoshiro(shape.seed ^ 0x686f_6c65);
  const part = Math.floor((to - from) / HOLES);
  const holes: FrameRange[] = [];
  for (let i = 0; i < HOLES; i++) {
    const count = 1 + rng.below(Math.min(8, Math.floor(part / 4)));
    holes.push({ first: from + i * part + rng.below(part - count), count });
  }
  holes.push({ first: balloon.first, count: balloon.count >> 1 });
  return holes;
}
