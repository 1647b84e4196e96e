/**
 * The linear p2m of newer PV kernels (Linux 4.0 and later): an array in the guest's virtual memory, announced by
 * arch.p2m_cr3, p2m_vaddr and p2m_generation of its shared info.
 */
import { cr3ToFrame, levelsOf, PTE_PRESENT, PTE_PSE, PTES, XEN_HOLE, type GuestWidth } from '../abi/pv.js';
import type { Domain } from '../host/host.js';
import { checkMfn, hex, p2mError, visitGuestFrames } from './guest-frames.js';

/** What shared info tells of a linear p2m, read once. */
export interface LinearP2m {
  readonly cr3: bigint;
  readonly vaddr: bigint;
}

/** Where the p2m is: its highest pfn, and the mfns of its leaf frames in order. */
export interface P2mFrames {
  readonly maxPfn: number;
  readonly leaves: Float64Array;
}

const VIRTUAL_BITS = 0xffff_ffff_ffffn;

/**
 * Follows the guest's page tables to the frames of its p2m.
 *
 * The address range may be larger than what is in use: Linux reserves room for memory that may be plugged in later, and
 * lets all of it point to one page table of "missing" entries. So if the last level-2 entries of the range all point to
 * the same table, that tail is not used, and `maxPfn` becomes smaller. (xg_sr_save_x86_pv.c compares a relative index
 * with an absolute one there, and cuts off used memory if the range does not begin at level-2 entry 0.)
 *
 * @param maxPfn Highest pfn as shared info tells it; `limit` the highest that is believed once the tail is gone
 * @throws GuestError for tables that cannot be right; nothing is read that is not the guest's own
 */
export async function walkLinearP2m(
  domain: Domain,
  width: GuestWidth,
  maxMfn: number,
  maxPfn: number,
  limit: (maxPfn: number) => void,
  { cr3, vaddr }: LinearP2m,
): Promise<P2mFrames> {
  const fpp = 4096 / width;
  const root = checkMfn(cr3ToFrame(cr3, width), maxMfn, 'p2m_cr3');
  const start = checkRange(width, vaddr, Math.floor(maxPfn / fpp) + 1);

  let tables: Float64Array = Float64Array.of(root);
  for (let level: number = levelsOf(width); level >= 1; level--) {
    // Entry n of a level maps the n-th piece of (512 ^ (level − 1)) pages of the address space.
    const shift = BigInt(12 + 9 * (level - 1));
    const end = start + BigInt(Math.floor(maxPfn / fpp)) * 4096n;
    const from = Number(start >> shift);
    const to = Number(end >> shift);
    const entries = await readEntries(domain, level, tables, from, to, maxMfn);
    if (level === 2) {
      const used = usedEntries(entries);
      if (used < entries.length) {
        // Pages of the p2m below the first unused entry.
        const pages = Number(((BigInt(from + used) << shift) - start) >> 12n);
        maxPfn = Math.min(maxPfn, pages * fpp - 1);
      }
      limit(maxPfn);
      tables = entries.subarray(0, used);
    } else {
      tables = entries;
    }
  }
  return { maxPfn, leaves: tables };
}

/** The start of the range, as an offset in the 48 bits (32-bit guest: 32 bits) that page tables translate. */
function checkRange(width: GuestWidth, vaddr: bigint, frames: number): bigint {
  const end = vaddr + BigInt(frames) * 4096n - 1n;
  const [holeStart, holeEnd] = XEN_HOLE[width];
  const inRange = width === 8 ? isCanonical(vaddr) && isCanonical(end) : end <= 0xffff_ffffn;
  // A range from the lower to the upper half of the 64-bit address space runs through the hole and is refused with it.
  const inHole = vaddr <= holeEnd && end >= holeStart;
  if (!inRange || inHole || (vaddr & 0xfffn) !== 0n) {
    throw p2mError(`bad virtual p2m address range 0x${vaddr.toString(16)}…0x${end.toString(16)}`);
  }
  return vaddr & VIRTUAL_BITS;
}

function isCanonical(address: bigint): boolean {
  return (
    address <= 0x7fff_ffff_ffffn || (address >= 0xffff_8000_0000_0000n && address <= 0xffff_ffff_ffff_ffffn)
  );
}

/** Frames that entries `from`…`to` of one level name; `tables` are that level's tables from the first on. */
async function readEntries(
  domain: Domain,
  level: number,
  tables: Float64Array,
  from: number,
  to: number,
  maxMfn: number,
): Promise<Float64Array> {
  const frames = new Float64Array(to - from + 1);
  const firstTable = Math.floor(from / PTES);
  const what = `level-${level} table of the p2m`;
  await visitGuestFrames(domain, tables, what, (words, at, index) => {
    const base = (firstTable + index) * PTES;
    const first = Math.max(from, base);
    const last = Math.min(to, base + PTES - 1);
    for (let entry = first; entry <= last; entry++) {
      const word = at + (entry - base) * 2;
      const low = words[word] as number;
      const high = words[word + 1] as number;
      const where = `entry ${entry - base} of ${what} at mfn ${hex(tables[index] as number)}`;
      if ((low & PTE_PRESENT) === 0) throw p2mError(`${where} is not present`);
      if (level > 1 && (low & PTE_PSE) !== 0) throw p2mError(`${where} maps a superpage`);
      frames[entry - from] = checkMfn((high & 0xf_ffff) * 0x10_0000 + (low >>> 12), maxMfn, where);
    }
  });
  return frames;
}

/** Entries before the tail of two or more equal ones; at least 1. */
function usedEntries(entries: Float64Array): number {
  const last = entries.length - 1;
  let same = last;
  while (same > 0 && entries[same - 1] === entries[last]) same--;
  if (same === last) return entries.length;
  return Math.max(1, same);
}
