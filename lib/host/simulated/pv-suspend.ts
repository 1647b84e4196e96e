/**
 * How the modelled PV kernel leaves by the suspend hypercall and comes back from it, in the order in which Linux does
 * it. What a stream can and cannot carry decides it: frame numbers in page tables, contexts and the p2m are carried
 * over by whoever saves and restores; those in start_info go as pfns; those in shared info are set anew.
 */
import { PAGE_SIZE } from '../../abi/pages.js';
import { frameToCr3, PTES, SHARED_INFO, START_INFO, VCPU_CONTEXT } from '../../abi/pv.js';
import { setU32 } from '../../bytes/le.js';
import { INVALID_FRAME } from '../host.js';
import { pteHigh, pteLow, walk } from './pv-frames.js';
import { DATA, isOwn, panic, type PvKernel } from './pv-kernel.js';
import { p2mVaddr } from './pv-layout.js';
import { pinProcess, processState, ProcessState, unpinProcess } from './pv-process.js';
import { kernelFlags, kernelHighFlags } from './pv-tables.js';
import { readLong, writeLong } from './pv-vcpu.js';

/**
 * Registers in a context by which the model knows its own kernel: r15 (64-bit), ebp (32-bit) hold this while it is
 * suspended. A kernel that has the mark and whose data cannot be found is broken; one without is another's.
 */
const MARK = 0x4b56_5058;
const MARK_REGISTER = { 4: 536, 8: 520 } as const;

const FRAMES_BELOW_4G = 0x10_0000;

/** True if the context of vcpu 0 is that of this model's kernel in its suspend hypercall. */
export function hasKernelMark(context: Uint8Array, width: 4 | 8): boolean {
  return readLong(context, MARK_REGISTER[width], width) === MARK;
}

/** From the guest's decision to suspend until its hypercall has stopped it. */
export function suspendKernel(kernel: PvKernel): void {
  const { layout, env } = kernel;
  const { width } = layout;
  // Tables under construction hold frame numbers that nobody translates unless they are tables to the hypervisor.
  for (let p = 0; p < layout.processCount; p++) {
    if (processState(kernel, p) === ProcessState.GROWING) pinProcess(kernel, p, ProcessState.HELD);
  }
  const info = env.frames.page(kernel.mfn(layout.startInfo));
  const fields = START_INFO[width];
  writeLong(info, fields.storeMfn, width, layout.store);
  // console.domU.mfn
  writeLong(info, fields.consoleMfn, width, layout.console);
  env.markDirty(layout.startInfo);

  // The shared info frame has no pfn, so a table that names it could not be carried over.
  setSharedInfoMapping(kernel, INVALID_FRAME);

  kernel.data[DATA.SUSPENDED] = 1;
  env.markDirty(layout.data);
  const context = kernel.context(0);
  const registers = VCPU_CONTEXT[width];
  writeLong(context, registers.rax, width, 0);
  writeLong(context, registers.rdx, width, kernel.mfn(layout.startInfo));
  writeLong(context, MARK_REGISTER[width], width, MARK);
}

/**
 * From the return of the suspend hypercall until the guest's processes go on. rax tells the kernel where it is: 1 on
 * the host where it called, 0 on another one. Throws GuestError if the kernel cannot find its way.
 *
 * A 32-bit start_info has room for 20 bits of the shared info page's frame, because Xen puts that page below 4 GiB.
 * A simulated host has no memory there, so the kernel takes the upper bits from `sharedInfoMfn`.
 */
export function resumeKernel(kernel: PvKernel, sharedInfoMfn: number): void {
  const { layout, env } = kernel;
  const { width } = layout;
  if (kernel.data[DATA.SUSPENDED] !== 1) throw panic('it comes back from a hypercall that it did not make');
  const context = kernel.context(0);
  const cancelled = readLong(context, VCPU_CONTEXT[width].rax, width) === 1;
  const info = env.frames.page(kernel.mfn(layout.startInfo));
  const fields = START_INFO[width];
  const store = cancelled ? kernel.mfn(layout.store) : readLong(info, fields.storeMfn, width);
  const console = cancelled ? kernel.mfn(layout.console) : readLong(info, fields.consoleMfn, width);
  if (store !== kernel.mfn(layout.store)) throw panic('start_info names another page as its xenstore ring');
  if (console !== kernel.mfn(layout.console))
    throw panic('start_info names another page as its console ring');
  if (readLong(info, fields.nrPages, width) < layout.pages)
    throw panic('start_info tells fewer pages than there are');
  writeLong(info, fields.storeMfn, width, store);
  writeLong(info, fields.consoleMfn, width, console);
  env.markDirty(layout.startInfo);

  let shared = Math.floor(readLong(info, fields.sharedInfo, width) / PAGE_SIZE);
  if (width === 4) shared += sharedInfoMfn - (sharedInfoMfn % FRAMES_BELOW_4G);
  setSharedInfoMapping(kernel, shared);
  if (layout.p2m === 'tree') writeFrameLists(kernel);
  publishP2m(kernel);
  for (let p = 0; p < layout.processCount; p++) {
    if (processState(kernel, p) === ProcessState.HELD) unpinProcess(kernel, p, ProcessState.GROWING);
  }
  kernel.data[DATA.SUSPENDED] = 0;
  env.markDirty(layout.data);
  writeLong(context, MARK_REGISTER[width], width, 0);
}

/** Maps the shared info page at its place, or unmaps it (INVALID_FRAME). */
export function setSharedInfoMapping(kernel: PvKernel, mfn: number): void {
  const { sharedVpn, levels, width } = kernel.layout;
  if (mfn !== INVALID_FRAME && !isOwn(kernel.env, mfn))
    throw panic('start_info names a shared info page of others');
  const table = walk(kernel.env.frames, kernel.top, levels, sharedVpn, 2);
  if (table < 0) throw panic('its page tables have no place for the shared info page');
  const unmap = mfn === INVALID_FRAME;
  const lo = unmap ? 0 : pteLow(mfn, kernelFlags(width, true));
  const hi = unmap ? 0 : pteHigh(mfn, kernelHighFlags(width));
  kernel.expect(kernel.mmu.update(table, sharedVpn % PTES, lo, hi));
}

/** The shared info page, by the kernel's mapping of it. */
function sharedInfo(kernel: PvKernel): Uint8Array {
  const mfn = kernel.translate(kernel.layout.sharedVpn);
  if (!isOwn(kernel.env, mfn)) throw panic('the shared info page is not mapped');
  return kernel.env.frames.page(mfn);
}

/** Writes the frame list list and the frame lists of a tree layout: machine frames of the p2m's pages. */
export function writeFrameLists(kernel: PvKernel): void {
  const { layout, env } = kernel;
  const { width, fpp, lists } = layout;
  const bytes = (i: number): Uint8Array => env.frames.page(kernel.mfn(lists.first + i));
  const tail = layout.missingLeaf < 0 ? -1 : kernel.mfn(layout.missingLeaf);
  const full = lists.count - 1 - (tail < 0 ? 0 : 1);
  for (let k = 0; k < lists.count - 1; k++) {
    const list = bytes(k + 1);
    for (let i = 0; i < fpp; i++) {
      const leaf = k * fpp + i;
      const present = k < full && leaf < layout.leafCount;
      writeLong(list, i * width, width, present ? kernel.mfn(layout.leaves.first + leaf) : tail);
    }
    writeLong(bytes(0), k * width, width, kernel.mfn(lists.first + 1 + k));
    env.markDirty(lists.first + 1 + k);
  }
  // Entries of pfns that the guest does not have all name the last list, if there is a tail.
  for (let k = lists.count - 1; k < fpp; k++) {
    writeLong(bytes(0), k * width, width, tail < 0 ? 0 : kernel.mfn(lists.first + lists.count - 1));
  }
  env.markDirty(lists.first);
}

/** Tells the toolstack, in the shared info page, where the p2m is. */
export function publishP2m(kernel: PvKernel): void {
  const { layout } = kernel;
  const { width } = layout;
  const page = sharedInfo(kernel);
  const fields = SHARED_INFO[width];
  const tree = layout.p2m === 'tree';
  writeLong(page, fields.maxPfn, width, layout.p2mEntries);
  // A kernel with the linear layout says by all ones that it has no frame lists.
  writeLong(page, fields.frameListList, width, tree ? kernel.mfn(layout.lists.first) : -1);
  writeLong(page, fields.p2mGeneration, width, 0);
  const vaddr = tree ? 0n : p2mVaddr(layout);
  setU32(page, fields.p2mVaddr, Number(vaddr & 0xffff_ffffn));
  if (width === 8) setU32(page, fields.p2mVaddr + 4, Number(vaddr >> 32n));
  const cr3 = tree ? 0n : frameToCr3(kernel.mfn(layout.tables.first), width);
  setU32(page, fields.p2mCr3, Number(cr3 & 0xffff_ffffn));
  if (width === 8) setU32(page, fields.p2mCr3 + 4, Number(cr3 >> 32n));
}

/** Counts the p2m's generation up: odd while it changes. Tree layouts have no such count. */
export function bumpGeneration(kernel: PvKernel): void {
  const { width, p2m } = kernel.layout;
  if (p2m === 'tree') return;
  const page = sharedInfo(kernel);
  const at = SHARED_INFO[width].p2mGeneration;
  writeLong(page, at, width, readLong(page, at, width) + 1);
}
