/**
 * PV guests whose kernel is not this simulator's model: a real guest's capture, restored and not run. To be saved
 * again it has to look like a guest in its suspend hypercall, and a few fields do not after a restore, because the
 * restorer filled them in for a kernel that would then run. What the kernel would do about them is done here on its
 * behalf, and no more.
 *
 * When it comes back from its suspend hypercall, and when it makes it:
 *
 *     shared_info.arch.p2m_cr3                 linear p2m: the page tables of vcpu 0, which map the p2m as well as
 *                                              those of the kernel, whose frame on the old host the field still has
 *     shared_info.arch.pfn_to_mfn_frame_list_list
 *                                              tree: zeroed by the restorer; new lists in frames that have no pfn
 *
 * When it makes it:
 *
 *     start_info.store_mfn, console.domU.mfn   machine frame → pfn
 */
import { PAGE_SIZE } from '../../abi/pages.js';
import { fppOf, frameToCr3, levelsOf, SHARED_INFO, START_INFO, VCPU_CONTEXT } from '../../abi/pv.js';
import { setU32, u32, u64 } from '../../bytes/le.js';
import { GuestError } from '../../errors.js';
import { INVALID_FRAME } from '../host.js';
import { vpnOf, walk } from './pv-frames.js';
import { isOwn, readP2m, type PvKernelEnv } from './pv-kernel.js';
import { kernelTable, readLong, writeLong } from './pv-vcpu.js';

/** Most pfns that a stream can speak of. */
const MAX_PFNS = 2 ** 32;

/** What the domain gives beside the surroundings of a kernel. */
export interface OpaqueTools {
  readonly env: PvKernelEnv;
  /** Context of vcpu 0. */
  readonly context: Uint8Array;
  readonly sharedInfoMfn: number;
  /** A zeroed frame of the domain without a pfn, as shared info is one; INVALID_FRAME if there is no memory. */
  readonly hiddenFrame: () => number;
  readonly forEachOwned: (visit: (mfn: number) => void) => void;
}

/** Frames that start_info named before, to put back if the suspend is cancelled. */
export interface OpaqueRings {
  readonly store: number;
  readonly console: number;
}

/** Makes the guest look suspended. Throws GuestError if its state does not allow that. */
export function suspendOpaque(tools: OpaqueTools): OpaqueRings {
  const { env } = tools;
  const { frames, width } = env;
  const info = startInfo(tools);
  const fields = START_INFO[width];
  const rings = {
    store: readLong(info.page, fields.storeMfn, width),
    console: readLong(info.page, fields.consoleMfn, width),
  };
  if (isOwn(env, rings.store)) writeLong(info.page, fields.storeMfn, width, frames.pfnOf(rings.store));
  if (isOwn(env, rings.console)) writeLong(info.page, fields.consoleMfn, width, frames.pfnOf(rings.console));
  env.markDirty(info.pfn);
  publishOpaqueP2m(tools);
  return rings;
}

/**
 * Tells the toolstack where the p2m is, as a kernel does that comes back on another host. Harmless when that is known.
 * Throws GuestError if the p2m cannot be found.
 */
export function publishOpaqueP2m(tools: OpaqueTools): void {
  const { env, sharedInfoMfn } = tools;
  const { frames, width } = env;
  const page = frames.page(sharedInfoMfn);
  const arch = SHARED_INFO[width];
  const pages = readLong(page, arch.maxPfn, width);
  const vaddr = width === 8 ? u64(page, arch.p2mVaddr) : BigInt(u32(page, arch.p2mVaddr));
  if (vaddr !== 0n) {
    const top = kernelTable(tools.context, width);
    checkLinear(env, top, vpnOf(vaddr, width), pages);
    const cr3 = frameToCr3(top, width);
    setU32(page, arch.p2mCr3, Number(cr3 & 0xffff_ffffn));
    if (width === 8) setU32(page, arch.p2mCr3 + 4, Number(cr3 >> 32n));
  } else if (readLong(page, arch.frameListList, width) === 0) {
    writeLong(page, arch.frameListList, width, makeFrameLists(tools, pages));
  }
}

/** Undoes what `suspendOpaque` did to start_info. */
export function resumeOpaque(tools: OpaqueTools, rings: OpaqueRings): void {
  const { env } = tools;
  const info = startInfo(tools);
  writeLong(info.page, START_INFO[env.width].storeMfn, env.width, rings.store);
  writeLong(info.page, START_INFO[env.width].consoleMfn, env.width, rings.console);
  env.markDirty(info.pfn);
}

/** The third argument of the suspend hypercall: the frame of start_info. */
function startInfo({ env, context }: OpaqueTools): { readonly page: Uint8Array; readonly pfn: number } {
  const mfn = readLong(context, VCPU_CONTEXT[env.width].rdx, env.width);
  const pfn = isOwn(env, mfn) ? env.frames.pfnOf(mfn) : INVALID_FRAME;
  if (pfn === INVALID_FRAME) throw unfit(env, 'rdx of vcpu 0 names no start_info page');
  return { page: env.frames.page(mfn), pfn };
}

function unfit(env: PvKernelEnv, why: string): GuestError {
  const what = `guest ${env.domid} cannot be suspended on its kernel's behalf: ${why}`;
  return new GuestError('ERR_XEN_GUEST_OPAQUE', what, { domid: env.domid });
}

/** The page tables have to lead to the p2m, and what is there has to be one. */
function checkLinear(env: PvKernelEnv, top: number, vpn: number, pages: number): void {
  const { frames, width } = env;
  const fpp = fppOf(width);
  if (pages > MAX_PFNS) throw unfit(env, `shared info tells ${pages} pfns`);
  let empty = INVALID_FRAME;
  for (let leaf = 0; leaf * fpp < pages; leaf++) {
    const mfn = walk(frames, top, levelsOf(width), vpn + leaf);
    if (!isOwn(env, mfn)) throw unfit(env, `the tables of vcpu 0 do not map page ${leaf} of the p2m`);
    // After its end all pages of a p2m are one, without entries.
    if (mfn === empty) continue;
    empty = mfn;
    const words = frames.pageWords(mfn);
    for (let i = 0; i < fpp && leaf * fpp + i < pages; i++) {
      const entry = readP2m(words, i, width);
      // Entries that name no frame of the guest stand for pages that it maps from others, or does not have.
      if (!isOwn(env, entry)) continue;
      empty = INVALID_FRAME;
      if (frames.pfnOf(entry) !== leaf * fpp + i) {
        throw unfit(env, `its p2m has a wrong entry for pfn 0x${(leaf * fpp + i).toString(16)}`);
      }
    }
  }
}

/**
 * Frame lists of a tree p2m. The guest's own lists hold frames of the host that it comes from; its p2m pages are found
 * by their contents, which the restorer has brought up to date.
 */
function makeFrameLists(tools: OpaqueTools, pages: number): number {
  const { env, hiddenFrame } = tools;
  const { frames, width } = env;
  const fpp = fppOf(width);
  if (pages > fpp ** 3) throw unfit(env, `shared info tells ${pages} pfns`);
  const leaves = new Float64Array(Math.ceil(pages / fpp)).fill(INVALID_FRAME);
  tools.forEachOwned((mfn) => {
    const leaf = frames.pfnOf(mfn) === INVALID_FRAME ? -1 : leafNumber(env, mfn, pages);
    if (leaf >= 0 && leaf < leaves.length) leaves[leaf] = mfn;
  });
  const take = (): number => {
    const mfn = hiddenFrame();
    if (mfn === INVALID_FRAME) throw unfit(env, 'the host has no memory for its frame lists');
    return mfn;
  };
  const top = take();
  let empty = INVALID_FRAME;
  for (let i = 0; i < leaves.length; i += fpp) {
    const list = take();
    writeLong(frames.page(top), (i / fpp) * width, width, list);
    for (let k = 0; k < fpp; k++) {
      let leaf = leaves[i + k] ?? INVALID_FRAME;
      if (leaf === INVALID_FRAME && i + k < leaves.length) {
        throw unfit(env, `page ${i + k} of its p2m is not found`);
      }
      if (leaf === INVALID_FRAME) leaf = empty;
      empty = leaf;
      writeLong(frames.page(list), k * width, width, leaf);
    }
  }
  return top;
}

/** Which page of the p2m a page is, judged by what it holds; -1 if none. */
function leafNumber(env: PvKernelEnv, mfn: number, pages: number): number {
  const { frames, width } = env;
  const words = frames.pageWords(mfn);
  let leaf = -1;
  for (let i = 0; i < PAGE_SIZE / width; i++) {
    const entry = readP2m(words, i, width);
    if (entry === INVALID_FRAME) continue;
    if (!isOwn(env, entry)) return -1;
    const pfn = frames.pfnOf(entry);
    const number = (pfn - i) / fppOf(width);
    if (pfn >= pages || !Number.isInteger(number) || (leaf >= 0 && number !== leaf)) return -1;
    leaf = number;
  }
  return leaf;
}
