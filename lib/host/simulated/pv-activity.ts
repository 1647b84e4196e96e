/**
 * What the modelled PV kernel does by itself while its guest runs, a little at each tick: it looks at a few pages,
 * and its processes come, go and change their page tables. What it does follows from its generator alone, which is in
 * guest memory, so a run can be repeated and goes on after a migration.
 */
import { PTES } from '../../abi/pv.js';
import { XenMigrationError } from '../../errors.js';
import { Xoshiro } from './prng.js';
import { pteHigh, pteLow, walk } from './pv-frames.js';
import { Activity, DATA, panic, writeP2m, type PvFault, type PvKernel } from './pv-kernel.js';
import { leafOf, PROCESS_PAGES } from './pv-layout.js';
import { verifyPage } from './pv-check.js';
import {
  changeProcess,
  growProcess,
  isCurrent,
  pinProcess,
  processState,
  ProcessState,
  switchTo,
  unpinProcess,
} from './pv-process.js';
import { bumpGeneration } from './pv-suspend.js';
import { kernelFlags, kernelHighFlags } from './pv-tables.js';

/** Pages looked at in one tick. */
const LOOKS = 4;
/** Entries of page tables changed in one tick that changes some, at most. */
const CHANGES = 8;

/** One tick. Returns what the kernel noticed; a guest that noticed something is broken. */
export function tickKernel(kernel: PvKernel): PvFault | undefined {
  try {
    return tick(kernel);
  } catch (error) {
    if (!XenMigrationError.is(error)) throw error;
    return { pfn: -1, kind: 'hypercall', what: error.message };
  }
}

function tick(kernel: PvKernel): PvFault | undefined {
  const { data, layout, env } = kernel;
  const rng = new Xoshiro(0);
  rng.state.set(data.subarray(DATA.RNG, DATA.RNG + 4));
  const low = ((data[DATA.TICKS] as number) + 1) >>> 0;
  data[DATA.TICKS] = low;
  if (low === 0) data[DATA.TICKS + 1] = (data[DATA.TICKS + 1] as number) + 1;

  let fault: PvFault | undefined;
  for (let i = 0; i < LOOKS; i++) fault ??= verifyPage(kernel, rng.below(layout.pages));

  const activity = data[DATA.ACTIVITY] as number;
  if (fault === undefined) {
    if ((activity & Activity.PAGE_TABLES) !== 0) workOnProcesses(kernel, rng);
    if ((activity & Activity.P2M) !== 0 && rng.below(4) === 0) exchangePages(kernel, rng);
  }
  data.set(rng.state, DATA.RNG);
  env.markDirty(layout.data);
  return fault;
}

function workOnProcesses(kernel: PvKernel, rng: Xoshiro): void {
  const process = rng.below(kernel.layout.processCount);
  const state = processState(kernel, process);
  if (state === ProcessState.NONE) {
    growProcess(kernel, process, rng);
    return;
  }
  const what = rng.below(16);
  if (what === 0 && state === ProcessState.GROWING) pinProcess(kernel, process, ProcessState.LIVE);
  else if (what === 1 && state === ProcessState.LIVE && !isCurrent(kernel, process))
    endProcess(kernel, process);
  else if (what === 2 && state === ProcessState.LIVE) switchTo(kernel, 0, process);
  else for (let i = rng.below(CHANGES); i >= 0; i--) changeProcess(kernel, process, rng);
}

/** A process ends: its tables become plain memory. */
function endProcess(kernel: PvKernel, process: number): void {
  unpinProcess(kernel, process, ProcessState.NONE);
  const first = kernel.layout.processes.first + process * PROCESS_PAGES;
  for (let page = 0; page < PROCESS_PAGES; page++) {
    kernel.page(first + page).fill(0);
    kernel.env.markDirty(first + page);
  }
}

/** Lets two pages of the balloon area change their frames, as after XENMEM_exchange; what they hold stays theirs. */
function exchangePages(kernel: PvKernel, rng: Xoshiro): void {
  const { balloon } = kernel.layout;
  const a = balloon.first + rng.below(balloon.count);
  const b = balloon.first + rng.below(balloon.count);
  if (a === b || !kernel.hasRam(a) || !kernel.hasRam(b)) return;
  const mfnA = kernel.mfn(a);
  const mfnB = kernel.mfn(b);
  const { frames } = kernel.env;
  const held = frames.pageWords(mfnA).slice();
  frames.pageWords(mfnA).set(frames.pageWords(mfnB));
  frames.pageWords(mfnB).set(held);
  bumpGeneration(kernel);
  setFrame(kernel, a, mfnB);
  setFrame(kernel, b, mfnA);
  bumpGeneration(kernel);
}

/** Gives a pfn another frame, or none (-1): p2m, M2P and direct map. Between two `bumpGeneration`. */
export function setFrame(kernel: PvKernel, pfn: number, mfn: number): void {
  const { layout, env } = kernel;
  const { width } = layout;
  const leaf = leafOf(layout, pfn);
  writeP2m(kernel.page(leaf), pfn % layout.fpp, width, mfn);
  env.markDirty(leaf);
  kernel.physmap[pfn] = mfn < 0 ? 0 : mfn;
  if (mfn >= 0) env.frames.setM2p(mfn, pfn);
  if (pfn >= layout.directPages) return;
  const vpn = layout.directVpn + pfn;
  const table = walk(env.frames, kernel.top, layout.levels, vpn, 2);
  if (table < 0) throw panic(`pfn 0x${pfn.toString(16)} is not in the direct map`);
  const lo = mfn < 0 ? absentEntry(pfn).lo : pteLow(mfn, kernelFlags(width, true));
  const hi = mfn < 0 ? absentEntry(pfn).hi : pteHigh(mfn, kernelHighFlags(width));
  kernel.expect(kernel.mmu.update(table, vpn % PTES, lo, hi));
}

/** What stands in the direct map for a page that is ballooned out: not present, and else anything at all. */
export function absentEntry(pfn: number): { readonly lo: number; readonly hi: number } {
  const rng = new Xoshiro(pfn);
  return { lo: (rng.next() & ~1) >>> 0, hi: rng.next() };
}
