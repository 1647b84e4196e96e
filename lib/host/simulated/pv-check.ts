/**
 * How the modelled PV kernel finds out that its memory is not what it was: single pages in passing, everything when
 * asked. It compares what it can see: its p2m, the hypervisor's M2P, its page tables, and its own records.
 */
import { PTE_PRESENT, PTES, XEN_L2_COMPAT_FIRST, XEN_L4_FIRST, XEN_L4_LAST } from '../../abi/pv.js';
import { INVALID_FRAME } from '../host.js';
import { PTE_RW, pteFrame, walk } from './pv-frames.js';
import { isOwn, leafFrame, readP2m, type PvFault, type PvKernel } from './pv-kernel.js';
import { p2mPage, PROCESS_PAGES, type PvLayout } from './pv-layout.js';
import { auditProcess, isPinnedState, isProcessTable, processState, ProcessState } from './pv-process.js';

/** Result of a whole check. */
export interface PvCheck {
  /** Entries of page tables and p2m that were looked at. */
  readonly entries: number;
  readonly faults: number;
  readonly first: PvFault | undefined;
}

const hex = (n: number): string => (n < 0 ? 'nothing' : `0x${n.toString(16)}`);

/** Looks at one page on all ways to it. Cheap: two walks. */
export function verifyPage(kernel: PvKernel, pfn: number): PvFault | undefined {
  const { layout } = kernel;
  const leaf = leafFrame(kernel, Math.floor(pfn / layout.fpp));
  if (!isOwn(kernel.env, leaf)) return { pfn, kind: 'page-table', what: 'its p2m entry cannot be reached' };
  const entry = readP2m(kernel.env.frames.pageWords(leaf), pfn % layout.fpp, layout.width);
  return verifyEntry(kernel, pfn, entry) ?? verifyDirectMap(kernel, pfn, entry);
}

/** The p2m entry of a pfn against the kernel's map of RAM, its way to the page, and the M2P. */
function verifyEntry(kernel: PvKernel, pfn: number, entry: number): PvFault | undefined {
  const { frames } = kernel.env;
  if (!kernel.hasRam(pfn)) {
    return entry === INVALID_FRAME
      ? undefined
      : { pfn, kind: 'p2m', what: `ballooned out, but p2m ${hex(entry)}` };
  }
  if (entry === INVALID_FRAME) return { pfn, kind: 'p2m', what: 'its memory is lost' };
  if (entry !== kernel.physmap[pfn]) return { pfn, kind: 'p2m', what: `p2m changed to ${hex(entry)}` };
  if (frames.pfnOf(entry) !== pfn) {
    return { pfn, kind: 'm2p', what: `p2m ${hex(entry)}, whose M2P entry is ${hex(frames.pfnOf(entry))}` };
  }
  return undefined;
}

function verifyDirectMap(kernel: PvKernel, pfn: number, entry: number): PvFault | undefined {
  const { layout } = kernel;
  if (pfn >= layout.directPages) return undefined;
  const mapped = kernel.translate(layout.directVpn + pfn);
  if (mapped === entry) return undefined;
  return { pfn, kind: 'page-table', what: `p2m ${hex(entry)}, but mapped to ${hex(mapped)}` };
}

/** Looks at everything: each p2m entry, each entry of each page table, the records of all processes. */
export function checkKernel(kernel: PvKernel): PvCheck {
  const { layout } = kernel;
  const found = new Findings();
  // The walk below goes through the data and RAM map pages, so these come first.
  for (const pfn of [layout.data, layout.ramMap.first, layout.startInfo]) {
    found.add(
      verifyEntry(kernel, pfn, kernel.physmap[pfn] === 0 ? INVALID_FRAME : (kernel.physmap[pfn] as number)),
    );
  }
  if (found.faults === 0) {
    checkP2m(kernel, found);
    checkKernelTables(kernel, found);
    for (let p = 0; p < layout.processCount; p++) checkProcess(kernel, p, found);
  }
  return found;
}

class Findings implements PvCheck {
  entries = 0;
  faults = 0;
  first: PvFault | undefined;
  /** Tables visited on the way. */
  tables = 0;

  add(fault: PvFault | undefined): void {
    this.entries++;
    if (fault === undefined) return;
    this.faults++;
    this.first ??= fault;
  }
}

function checkP2m(kernel: PvKernel, found: Findings): void {
  const { layout, env } = kernel;
  for (let i = 0; i < layout.leafCount; i++) {
    const mfn = leafFrame(kernel, i);
    const pfn = layout.leaves.first + i;
    if (mfn !== kernel.physmap[pfn]) {
      found.add({ pfn, kind: 'page-table', what: `page ${i} of the p2m is mapped to ${hex(mfn)}` });
      if (!isOwn(env, mfn)) continue;
    }
    const words = env.frames.pageWords(mfn);
    for (let k = 0; k < layout.fpp; k++) {
      const at = i * layout.fpp + k;
      const entry = readP2m(words, k, layout.width);
      if (at < layout.pages) found.add(verifyEntry(kernel, at, entry));
      else if (entry !== INVALID_FRAME)
        found.add({ pfn: at, kind: 'p2m', what: 'has memory beyond the last page' });
    }
  }
}

/**
 * Every entry of the kernel's own page tables, from the top: each mapping has to be one that the kernel made, and
 * together they have to be all that it made.
 */
function checkKernelTables(kernel: PvKernel, found: Findings): void {
  const { layout } = kernel;
  const expected =
    layout.directPages -
    holesBelow(kernel, layout.directPages) +
    layout.p2mMapped +
    2 -
    (sharedInfoMapped(kernel) ? 0 : 1);
  const mapped = visit(kernel, kernel.mfn(layout.tables.first), layout.levels, 0, found);
  if (mapped !== expected) {
    const what = `the kernel's page tables map ${mapped} pages, not ${expected}`;
    found.add({ pfn: layout.tables.first, kind: 'page-table', what });
  }
}

/** Counts and judges the mappings under a table whose first entry is for page `vpn`. */
function visit(kernel: PvKernel, table: number, level: number, vpn: number, found: Findings): number {
  const { layout, env } = kernel;
  // Only the tail's tables are met more than once; tables that lead in circles would not end.
  if (++found.tables > layout.tables.count + layout.p2mTail) return 0;
  const words = env.frames.pageWords(table);
  const span = PTES ** (level - 1);
  let mapped = 0;
  for (let slot = 0; slot < PTES; slot++) {
    const lo = words[slot * 2] as number;
    if ((lo & PTE_PRESENT) === 0 || isXenSlot(layout, level, slot, vpn)) continue;
    const mfn = pteFrame(lo, words[slot * 2 + 1] as number);
    const at = vpn + slot * span;
    if (level === 1) {
      found.add(judge(kernel, at, mfn, (lo & PTE_RW) !== 0));
      mapped++;
      continue;
    }
    const pfn = env.frames.pfnOf(mfn);
    const isTable = pfn > layout.tables.first && pfn < layout.tables.first + layout.tables.count;
    if (!isTable || kernel.physmap[pfn] !== mfn) {
      const what = `entry for ${hex(at)} at level ${level} names ${hex(mfn)}, which is no page table of the kernel`;
      found.add({ pfn, kind: 'page-table', what });
      continue;
    }
    mapped += visit(kernel, mfn, level - 1, at, found);
  }
  return mapped;
}

function isXenSlot(layout: PvLayout, level: number, slot: number, vpn: number): boolean {
  if (layout.width === 8) return level === 4 && slot >= XEN_L4_FIRST && slot <= XEN_L4_LAST;
  return level === 2 && slot >= XEN_L2_COMPAT_FIRST && vpn === 3 * PTES * PTES;
}

/** Judges one mapping of the kernel. */
function judge(kernel: PvKernel, vpn: number, mfn: number, writable: boolean): PvFault | undefined {
  const { layout } = kernel;
  let pfn: number;
  if (vpn >= layout.directVpn && vpn < layout.directVpn + layout.directPages) {
    pfn = vpn - layout.directVpn;
    if (writable === isReadOnly(kernel, pfn)) {
      return {
        pfn,
        kind: 'page-table',
        what: `is mapped ${writable ? 'writable' : 'read-only'} in the direct map`,
      };
    }
  } else if (vpn >= layout.p2mVpn && vpn < layout.p2mVpn + layout.p2mMapped) {
    pfn = p2mPage(layout, vpn - layout.p2mVpn);
  } else if (vpn === layout.dataVpn) {
    pfn = layout.data;
  } else if (vpn === layout.sharedVpn) {
    // No RAM of the guest: it has no pfn.
    return kernel.env.frames.pfnOf(mfn) === INVALID_FRAME
      ? undefined
      : { pfn: -1, kind: 'page-table', what: 'the shared info page is mapped to memory of the guest' };
  } else {
    return { pfn: -1, kind: 'page-table', what: `page ${hex(vpn)} is mapped, and ought not to be` };
  }
  if (kernel.physmap[pfn] === mfn && mfn !== 0) return undefined;
  return { pfn, kind: 'page-table', what: `page ${hex(vpn)} is mapped to ${hex(mfn)}` };
}

/** Pages that the kernel may only read in its direct map: what the hypervisor relies on. */
export function isReadOnly(kernel: PvKernel, pfn: number): boolean {
  const { tables, gdt } = kernel.layout;
  if (pfn >= tables.first && pfn < tables.first + tables.count) return true;
  return (pfn >= gdt.first && pfn < gdt.first + gdt.count) || isProcessTable(kernel, pfn);
}

function sharedInfoMapped(kernel: PvKernel): boolean {
  const { tables, levels, sharedVpn } = kernel.layout;
  return walk(kernel.env.frames, kernel.mfn(tables.first), levels, sharedVpn) !== INVALID_FRAME;
}

function holesBelow(kernel: PvKernel, end: number): number {
  let n = 0;
  for (let pfn = 0; pfn < end; pfn++) if (!kernel.hasRam(pfn)) n++;
  return n;
}

function checkProcess(kernel: PvKernel, process: number, found: Findings): void {
  const { layout } = kernel;
  const state = processState(kernel, process);
  if (state === ProcessState.NONE) return;
  const wrong = auditProcess(kernel, process);
  found.add(wrong === undefined ? undefined : { ...wrong, kind: 'page-table' });
  if (!isPinnedState(state)) return;
  // The kernel's part of the process's tables has to be the kernel's own.
  const first = layout.processes.first + process * PROCESS_PAGES;
  const own = layout.width === 8 ? kernel.page(layout.tables.first) : lastL2(kernel);
  const theirs = kernel.page(layout.width === 8 ? first : first + 1);
  for (let slot = layout.width === 8 ? 1 : 0; slot < PTES; slot++) {
    const level = layout.width === 8 ? 4 : 2;
    if (isXenSlot(layout, level, slot, layout.width === 8 ? 0 : 3 * PTES * PTES)) continue;
    if (theirs[slot * 2] === own[slot * 2] && theirs[slot * 2 + 1] === own[slot * 2 + 1]) continue;
    const what = `process ${process} sees another kernel at entry ${slot}`;
    found.add({ pfn: first, kind: 'page-table', what });
  }
}

/** The kernel's own last level 2 table (32-bit). */
function lastL2(kernel: PvKernel): Uint32Array {
  const top = kernel.page(kernel.layout.tables.first);
  return kernel.env.frames.pageWords(pteFrame(top[6] as number, top[7] as number));
}
