/**
 * Processes of the modelled PV kernel: page tables that come, change and go while the guest runs, so that a live
 * migration meets what it meets with real guests. Tables are filled as plain memory, made read-only in the direct
 * map, pinned at the top, and from then on changed by hypercalls alone.
 *
 * Pages of a process:
 *
 *     page   64-bit                        32-bit
 *        0   level 4, kernel and process   level 3
 *        1   level 4, process alone        level 2 of the last gigabyte, a copy of the kernel's
 *        2   level 3                       level 2 of the first gigabyte
 *        3   level 2                       not used
 *        4   level 1, text                 level 1, text
 *        5   level 1, heap                 level 1, heap
 *        6   record of page 4: each entry with the pfn in place of the frame
 *        7   record of page 5
 *
 * A 64-bit kernel is unmapped while its processes run, hence two top tables. A 32-bit guest's last level 2 table ends
 * in entries of Xen and cannot be shared.
 */
import {
  frameToCr3,
  PTE_PRESENT,
  PTES,
  XEN_L2_COMPAT_FIRST,
  XEN_L4_FIRST,
  XEN_L4_LAST,
} from '../../abi/pv.js';
import { setU32, setU64 } from '../../bytes/le.js';
import type { Xoshiro } from './prng.js';
import {
  PTE_ACCESSED,
  PTE_DIRTY,
  PTE_HI_NX,
  PTE_RW,
  PTE_SOFTWARE,
  PTE_USER,
  pteFrame,
  pteHigh,
  pteLow,
  walk,
} from './pv-frames.js';
import { DATA, panic, type PvKernel } from './pv-kernel.js';
import { kernelRanges, PROCESS_PAGES } from './pv-layout.js';
import { kernelFlags, kernelHighFlags, tableFlags, writeEntry } from './pv-tables.js';
import { ctrlreg, kernelTable, userTable } from './pv-vcpu.js';

export const ProcessState = {
  NONE: 0,
  /** Its tables are pinned and in use. */
  LIVE: 1,
  /** Its tables are still plain memory with machine frames in it. */
  GROWING: 2,
  /** As GROWING, but pinned for the time of a suspend, so that its frame numbers are carried over. */
  HELD: 3,
} as const;

/** Level 2 slots of a process's two tables: addresses 0x400000 and 0x800000. */
const TEXT_SLOT = 2;
const HEAP_SLOT = 4;
/** Entries that a new table gets, at most. */
const FIRST_ENTRIES = 96;

/** What a page of a process is for: by width, the level of each of its table pages; 0 for pages that are none. */
const TABLE_LEVELS = { 4: [3, 2, 2, 0, 1, 1], 8: [4, 4, 3, 2, 1, 1] } as const;
/** Pages that get pinned: the top ones. */
const PINNED_PAGES = { 4: [0], 8: [0, 1] } as const;

/** pfn of a page of a process. */
function pageOf(kernel: PvKernel, process: number, page: number): number {
  return kernel.layout.processes.first + process * PROCESS_PAGES + page;
}

export function processState(kernel: PvKernel, process: number): number {
  return kernel.data[DATA.PROCESSES + process] as number;
}

function setState(kernel: PvKernel, process: number, state: number): void {
  kernel.data[DATA.PROCESSES + process] = state;
  kernel.env.markDirty(kernel.layout.data);
}

/** True if the tables of a process in this state are validated by the hypervisor. */
export function isPinnedState(state: number): boolean {
  return state === ProcessState.LIVE || state === ProcessState.HELD;
}

/** True for pfns that hold page tables of a pinned process now: the direct map has them read-only. */
export function isProcessTable(kernel: PvKernel, pfn: number): boolean {
  const { processes, width } = kernel.layout;
  const i = pfn - processes.first;
  if (i < 0 || i >= processes.count) return false;
  if ((TABLE_LEVELS[width][i % PROCESS_PAGES] ?? 0) === 0) return false;
  return isPinnedState(processState(kernel, Math.floor(i / PROCESS_PAGES)));
}

/** Makes a page writable, or not, in the direct map. */
export function setWritable(kernel: PvKernel, pfn: number, writable: boolean): void {
  const { width, directVpn, levels } = kernel.layout;
  const vpn = directVpn + pfn;
  const table = walk(kernel.env.frames, kernel.top, levels, vpn, 2);
  if (table < 0) throw panic(`pfn 0x${pfn.toString(16)} is not in the direct map`);
  const mfn = kernel.mfn(pfn);
  const lo = pteLow(mfn, kernelFlags(width, writable));
  kernel.expect(kernel.mmu.update(table, vpn % PTES, lo, pteHigh(mfn, kernelHighFlags(width))));
}

/** Fills the tables of a process as plain memory. */
export function growProcess(kernel: PvKernel, process: number, rng: Xoshiro): void {
  const { width } = kernel.layout;
  for (let page = 0; page < PROCESS_PAGES; page++) {
    kernel.page(pageOf(kernel, process, page)).fill(0);
  }
  const link = (table: number, slot: number, below: number, level: number): void => {
    const mfn = kernel.mfn(pageOf(kernel, process, below));
    const at = kernel.mfn(pageOf(kernel, process, table));
    writeEntry(kernel.env.frames, at, slot, pteLow(mfn, tableFlags(width, level)), pteHigh(mfn, 0));
  };
  if (width === 8) {
    copyKernelL4(kernel, kernel.page(pageOf(kernel, process, 0)));
    link(0, 0, 2, 4);
    link(1, 0, 2, 4);
    link(2, 0, 3, 3);
    link(3, TEXT_SLOT, 4, 2);
    link(3, HEAP_SLOT, 5, 2);
  } else {
    copyKernelL2(kernel, kernel.page(pageOf(kernel, process, 1)));
    link(0, 0, 2, 3);
    link(0, 3, 1, 3);
    link(2, TEXT_SLOT, 4, 2);
    link(2, HEAP_SLOT, 5, 2);
  }
  for (const table of [4, 5] as const) {
    const slots = rng.below(FIRST_ENTRIES);
    for (let i = 0; i < slots; i++) writeRandomEntry(kernel, process, table, rng);
  }
  for (let page = 0; page < PROCESS_PAGES; page++) kernel.env.markDirty(pageOf(kernel, process, page));
  setState(kernel, process, ProcessState.GROWING);
}

/** Gives the tables of a growing process to the hypervisor. */
export function pinProcess(kernel: PvKernel, process: number, state: number): void {
  const { width } = kernel.layout;
  TABLE_LEVELS[width].forEach((level, page) => {
    if (level > 0) setWritable(kernel, pageOf(kernel, process, page), false);
  });
  for (const page of PINNED_PAGES[width]) {
    kernel.expect(kernel.mmu.pin(kernel.mfn(pageOf(kernel, process, page)), kernel.layout.levels));
  }
  setState(kernel, process, state);
}

/** Takes them back; they are plain memory again, with what was in them. */
export function unpinProcess(kernel: PvKernel, process: number, state: number): void {
  const { width } = kernel.layout;
  for (const page of PINNED_PAGES[width]) {
    kernel.expect(kernel.mmu.unpin(kernel.mfn(pageOf(kernel, process, page))));
  }
  TABLE_LEVELS[width].forEach((level, page) => {
    if (level > 0) setWritable(kernel, pageOf(kernel, process, page), true);
  });
  setState(kernel, process, state);
}

/** MMUEXT_NEW_BASEPTR: a vcpu goes over to a process, or to the kernel's own tables (-1). */
export function switchTo(kernel: PvKernel, vcpu: number, process: number): void {
  const { width, levels, tables, data } = kernel.layout;
  const context = kernel.context(vcpu);
  const base = kernel.mfn(process < 0 ? tables.first : pageOf(kernel, process, 0));
  const user = process < 0 || width === 4 ? -1 : kernel.mfn(pageOf(kernel, process, 1));
  const old = kernelTable(context, width);
  const oldUser = userTable(context, width);
  kernel.expect(kernel.mmu.get(base, levels));
  if (user >= 0) kernel.expect(kernel.mmu.get(user, levels));
  const at = ctrlreg(width, 3);
  if (width === 8) {
    setU64(context, at, frameToCr3(base, width));
    setU64(context, ctrlreg(width, 1), user < 0 ? 0n : frameToCr3(user, width));
  } else {
    setU32(context, at, Number(frameToCr3(base, width)));
  }
  kernel.mmu.put(old);
  if (oldUser >= 0) kernel.mmu.put(oldUser);
  kernel.data[DATA.VCPU_PROCESS + vcpu] = process + 1;
  kernel.env.markDirty(data);
}

/** True if a vcpu runs on the tables of a process. */
export function isCurrent(kernel: PvKernel, process: number): boolean {
  const { data, layout } = kernel;
  for (let v = 0; v < layout.vcpus; v++) if (data[DATA.VCPU_PROCESS + v] === process + 1) return true;
  return false;
}

/** Maps, unmaps or remaps a page of a process: by hypercall if it is live, by writing memory while it grows. */
export function changeProcess(kernel: PvKernel, process: number, rng: Xoshiro): void {
  const table = rng.below(2) === 0 ? 4 : 5;
  if (processState(kernel, process) === ProcessState.GROWING) {
    writeRandomEntry(kernel, process, table, rng);
    kernel.env.markDirty(pageOf(kernel, process, table));
    kernel.env.markDirty(pageOf(kernel, process, table + 2));
    return;
  }
  const slot = rng.below(PTES);
  const entry = randomEntry(kernel, table, rng);
  const hi = entry.pfn < 0 ? entry.hi : pteHigh(kernel.mfn(entry.pfn), entry.hi);
  const lo = entry.pfn < 0 ? entry.lo : pteLow(kernel.mfn(entry.pfn), entry.lo);
  kernel.expect(kernel.mmu.update(kernel.mfn(pageOf(kernel, process, table)), slot, lo, hi));
  record(kernel, process, table, slot, entry);
  kernel.env.markDirty(pageOf(kernel, process, table + 2));
}

/** Compares a process's tables with the records. Returns what is wrong with the first entry that differs. */
export function auditProcess(kernel: PvKernel, process: number): { pfn: number; what: string } | undefined {
  const { width } = kernel.layout;
  const { frames } = kernel.env;
  const expectLink = (page: number, slot: number, below: number): string | undefined => {
    const words = kernel.page(pageOf(kernel, process, page));
    const frame = pteFrame(words[slot * 2] as number, words[slot * 2 + 1] as number);
    return frame === kernel.mfn(pageOf(kernel, process, below))
      ? undefined
      : `entry ${slot} names another table`;
  };
  const links: readonly (readonly [number, number, number])[] =
    width === 8
      ? [[0, 0, 2], [1, 0, 2], [2, 0, 3], [3, TEXT_SLOT, 4], [3, HEAP_SLOT, 5]] // prettier-ignore
      : [[0, 0, 2], [0, 3, 1], [2, TEXT_SLOT, 4], [2, HEAP_SLOT, 5]]; // prettier-ignore
  for (const [page, slot, below] of links) {
    const what = expectLink(page, slot, below);
    if (what !== undefined) return { pfn: pageOf(kernel, process, page), what };
  }
  for (const table of [4, 5] as const) {
    const words = kernel.page(pageOf(kernel, process, table));
    const wanted = kernel.page(pageOf(kernel, process, table + 2));
    for (let slot = 0; slot < PTES; slot++) {
      let lo = wanted[slot * 2] as number;
      let hi = wanted[slot * 2 + 1] as number;
      if ((lo & PTE_PRESENT) !== 0) {
        const mfn = kernel.physmap[pteFrame(lo, hi)] ?? 0;
        if (frames.pfnOf(mfn) !== pteFrame(lo, hi))
          return { pfn: pteFrame(lo, hi), what: 'a mapped page has no memory' };
        lo = pteLow(mfn, lo & 0xfff);
        hi = pteHigh(mfn, hi & 0xfff0_0000);
      }
      if (words[slot * 2] !== lo || words[slot * 2 + 1] !== hi) {
        return { pfn: pageOf(kernel, process, table), what: `entry ${slot} is not what the process mapped` };
      }
    }
  }
  return undefined;
}

/** An entry to write: flags and pfn, or, with pfn -1, the words of one that is not present. */
interface Entry {
  readonly pfn: number;
  readonly lo: number;
  readonly hi: number;
}

function randomEntry(kernel: PvKernel, table: 4 | 5, rng: Xoshiro): Entry {
  const kind = rng.below(8);
  if (kind === 0) return { pfn: -1, lo: 0, hi: 0 };
  // As if swapped out: the bits mean something to the kernel, nothing to the processor.
  if (kind === 1) return { pfn: -1, lo: (rng.next() & ~PTE_PRESENT) >>> 0, hi: rng.next() };
  const pfn = randomPage(kernel, rng);
  if (pfn < 0) return { pfn: -1, lo: 0, hi: 0 };
  const software = rng.next() & PTE_SOFTWARE;
  const lo = PTE_PRESENT | PTE_USER | PTE_ACCESSED | software;
  if (table === 4) return { pfn, lo, hi: 0 };
  return { pfn, lo: kind < 6 ? lo | PTE_RW | PTE_DIRTY : lo, hi: PTE_HI_NX };
}

/** A page that is neither the kernel's nor ballooned out, -1 if luck did not find one. */
function randomPage(kernel: PvKernel, rng: Xoshiro): number {
  const { layout } = kernel;
  const taken = kernelRanges(layout);
  for (let tries = 0; tries < 16; tries++) {
    const pfn = rng.below(layout.pages);
    if (kernel.physmap[pfn] === 0 || !kernel.hasRam(pfn)) continue;
    if (!taken.some((r) => pfn >= r.first && pfn < r.first + r.count)) return pfn;
  }
  return -1;
}

/** Writes an entry of a table that is plain memory, and its record. */
function writeRandomEntry(kernel: PvKernel, process: number, table: 4 | 5, rng: Xoshiro): void {
  const slot = rng.below(PTES);
  const entry = randomEntry(kernel, table, rng);
  const words = kernel.page(pageOf(kernel, process, table));
  words[slot * 2] = entry.pfn < 0 ? entry.lo : pteLow(kernel.mfn(entry.pfn), entry.lo);
  words[slot * 2 + 1] = entry.pfn < 0 ? entry.hi : pteHigh(kernel.mfn(entry.pfn), entry.hi);
  record(kernel, process, table, slot, entry);
}

function record(kernel: PvKernel, process: number, table: 4 | 5, slot: number, entry: Entry): void {
  const words = kernel.page(pageOf(kernel, process, table + 2));
  words[slot * 2] = entry.pfn < 0 ? entry.lo : pteLow(entry.pfn, entry.lo);
  words[slot * 2 + 1] = entry.pfn < 0 ? entry.hi : pteHigh(entry.pfn, entry.hi);
}

/** All kernel entries of the kernel's own top table; Xen's are Xen's to fill in. */
function copyKernelL4(kernel: PvKernel, to: Uint32Array): void {
  to.set(kernel.page(kernel.layout.tables.first));
  to.fill(0, XEN_L4_FIRST * 2, (XEN_L4_LAST + 1) * 2);
}

function copyKernelL2(kernel: PvKernel, to: Uint32Array): void {
  const top = kernel.page(kernel.layout.tables.first);
  const last = pteFrame(top[6] as number, top[7] as number);
  to.set(kernel.env.frames.pageWords(last).subarray(0, XEN_L2_COMPAT_FIRST * 2));
}
