/**
 * The model of a PV kernel: what it knows, and how it gets at its memory. What it does is in pv-process.ts (page
 * tables of processes), pv-suspend.ts (going and coming back) and pv-check.ts (looking whether all is right).
 *
 * The kernel knows machine frames by its own p2m in guest memory alone, and finds that by its page tables, from the
 * base pointer of vcpu 0. So a migration that brings a wrong entry anywhere on this way brings a guest that notices.
 *
 * Kernel data page, 32-bit words:
 *
 *     word    field
 *      0-1    magic
 *        2    width
 *        3    pages
 *        4    vcpus
 *        5    p2m: 0 linear, 1 tree
 *        6    p2m not aligned
 *        7    p2m tail
 *        8    seed
 *        9    activity, see `Activity`
 *       10    0 up, 1 suspended
 *     12-15   state of the generator
 *     16-17   ticks, low and high
 *     32-47   state of each process, see `ProcessState`
 *     64-95   process of each vcpu + 1, 0 for the kernel's own page tables
 */
import { LEGACY_MAX_VCPUS, type GuestWidth } from '../../abi/pv.js';
import { GuestError } from '../../errors.js';
import { MachineFrames, type SharedMachineMemory } from './machine-frames.js';
import { INVALID_FRAME } from '../host.js';
import { walk } from './pv-frames.js';
import { dataVpnOf, layoutOf, type PvLayout, type PvShape } from './pv-layout.js';
import { PvMmu } from './pv-mmu.js';
import { CONTEXT_STRIDE, kernelTable } from './pv-vcpu.js';

export const DATA = {
  WIDTH: 2,
  PAGES: 3,
  VCPUS: 4,
  P2M: 5,
  UNALIGNED: 6,
  TAIL: 7,
  SEED: 8,
  ACTIVITY: 9,
  SUSPENDED: 10,
  RNG: 12,
  TICKS: 16,
  PROCESSES: 32,
  VCPU_PROCESS: 64,
} as const;

const MAGIC_LOW = 0x4b56_5058; // "XPVK"
const MAGIC_HIGH = 0x0001_4c4e; // "NL", version 1
/** Largest tail that a layout may have: more would leave the address space of a 32-bit guest. */
export const MAX_P2M_TAIL = 16;

/** What the kernel does by itself while the guest runs. */
export const Activity = {
  /** Processes come, go and change their page tables. */
  PAGE_TABLES: 1,
  /** Pages of the balloon area change places in the p2m. A live migration has to notice, and cannot carry it. */
  P2M: 2,
} as const;

/** Something that the guest's kernel finds wrong with its state. */
export interface PvFault {
  /** The page that it concerns, -1 if it cannot be said. */
  readonly pfn: number;
  readonly kind: 'p2m' | 'm2p' | 'page-table' | 'kernel-data' | 'hypercall';
  readonly what: string;
}

/** What the kernel's thread gives it. */
export interface PvKernelEnv {
  readonly domid: number;
  readonly width: GuestWidth;
  readonly frames: MachineFrames;
  /** `PvVcpus.contexts`. */
  readonly contexts: Uint8Array;
  /** The guest wrote to this pfn. Called after the write. */
  markDirty(pfn: number): void;
}

/** A kernel that another thread can run: shared memory and numbers, fit to be posted. See `openPvKernel`. */
export interface PvKernelHandle {
  readonly domid: number;
  readonly width: GuestWidth;
  readonly memory: SharedMachineMemory;
  readonly contexts: Uint8Array;
  readonly physmap: Uint32Array;
}

export class PvKernel {
  readonly env: PvKernelEnv;
  readonly layout: PvLayout;
  readonly mmu: PvMmu;
  /** mfn of each pfn, 0 where there is none: the p2m as it was found, what a processor's TLB is to a real guest. */
  readonly physmap: Uint32Array;
  /** The page of the RAM map that was looked at last. */
  #ramMapMfn = 0;
  #ramMapWords: Uint32Array = new Uint32Array(0);

  constructor(env: PvKernelEnv, layout: PvLayout, physmap: Uint32Array) {
    this.env = env;
    this.layout = layout;
    this.mmu = new PvMmu(env);
    this.physmap = physmap;
  }

  /** The live words of a page of the guest. For the kernel's own pages, not for loops over memory. */
  page(pfn: number): Uint32Array {
    return this.env.frames.pageWords(this.mfn(pfn));
  }

  /** The kernel data page. */
  get data(): Uint32Array {
    return this.page(this.layout.data);
  }

  /** Frame of a pfn. Throws GuestError if it has none. */
  mfn(pfn: number): number {
    const mfn = this.physmap[pfn];
    if (mfn === undefined || mfn === 0) throw panic(`pfn 0x${pfn.toString(16)} has no memory`);
    return mfn;
  }

  /** Context of a vcpu. */
  context(vcpu: number): Uint8Array {
    return contextOf(this.env, vcpu);
  }

  /** Frame of the top table that vcpu 0 runs on. */
  get top(): number {
    return kernelTable(this.context(0), this.layout.width);
  }

  /** Frame that a virtual page is mapped to, INVALID_FRAME if it is not. */
  translate(vpn: number): number {
    return walk(this.env.frames, this.top, this.layout.levels, vpn);
  }

  /** Takes what a hypercall answered. A kernel that Xen refuses something can only give up. */
  expect(error: number): void {
    if (error !== 0) throw panic(this.mmu.reason);
  }

  /** True if the kernel's map of its memory says that the pfn has RAM. */
  hasRam(pfn: number): boolean {
    const mfn = this.mfn(this.layout.ramMap.first + (pfn >>> 15));
    if (mfn !== this.#ramMapMfn) {
      this.#ramMapWords = this.env.frames.pageWords(mfn);
      this.#ramMapMfn = mfn;
    }
    return ((this.#ramMapWords[(pfn >>> 5) & 1023] as number) & (1 << (pfn & 31))) !== 0;
  }

  setRam(pfn: number, has: boolean): void {
    const page = this.layout.ramMap.first + (pfn >>> 15);
    const words = this.page(page);
    const w = (pfn >>> 5) & 1023;
    const bit = 1 << (pfn & 31);
    words[w] = has ? (words[w] as number) | bit : (words[w] as number) & ~bit;
    this.env.markDirty(page);
  }
}

/** A kernel that cannot go on. */
export function panic(why: string): GuestError {
  return new GuestError('ERR_XEN_GUEST_CRASHED', `the PV guest's kernel cannot go on: ${why}`);
}

function contextOf(env: PvKernelEnv, vcpu: number): Uint8Array {
  return env.contexts.subarray(vcpu * CONTEXT_STRIDE, (vcpu + 1) * CONTEXT_STRIDE);
}

/** Writes the part of the data page that says what kind of guest this is. */
export function writeShape(data: Uint32Array, shape: PvShape, activity: number): void {
  data[0] = MAGIC_LOW;
  data[1] = MAGIC_HIGH;
  data[DATA.WIDTH] = shape.width;
  data[DATA.PAGES] = shape.pages;
  data[DATA.VCPUS] = shape.vcpus;
  data[DATA.P2M] = shape.p2m === 'tree' ? 1 : 0;
  data[DATA.UNALIGNED] = shape.unalignedP2m ? 1 : 0;
  data[DATA.TAIL] = shape.p2mTail;
  data[DATA.SEED] = shape.seed;
  data[DATA.ACTIVITY] = activity;
}

/** The layout of the guest whose data page this is; undefined if it is not one. */
function readLayout(data: Uint32Array, width: GuestWidth): PvLayout | undefined {
  const pages = data[DATA.PAGES] as number;
  const vcpus = data[DATA.VCPUS] as number;
  const p2mTail = data[DATA.TAIL] as number;
  if (data[0] !== MAGIC_LOW || data[1] !== MAGIC_HIGH || data[DATA.WIDTH] !== width) return undefined;
  if (vcpus < 1 || vcpus > LEGACY_MAX_VCPUS || p2mTail > MAX_P2M_TAIL) return undefined;
  try {
    return layoutOf({
      width,
      pages,
      vcpus,
      p2m: data[DATA.P2M] === 1 ? 'tree' : 'linear',
      unalignedP2m: data[DATA.UNALIGNED] === 1,
      p2mTail,
      seed: data[DATA.SEED] as number,
    });
  } catch {
    // There are no guests of such a shape, so no kernel wrote this.
    return undefined;
  }
}

/**
 * Brings the kernel of vcpu 0's context to life: finds its data page and its p2m by its page tables, and reads the
 * p2m. Throws GuestError if either is not there.
 */
export function attachKernel(env: PvKernelEnv): PvKernel {
  const { frames, width } = env;
  const levels = width === 8 ? 4 : 3;
  const top = kernelTable(contextOf(env, 0), width);
  const data = walk(frames, top, levels, dataVpnOf(width));
  if (!isOwn(env, data)) throw panic('its page tables do not reach its data');
  const layout = readLayout(frames.pageWords(data), width);
  if (layout === undefined) throw panic('its data page holds something else');
  const physmap = new Uint32Array(new SharedArrayBuffer(layout.pages * 4));
  const kernel = new PvKernel(env, layout, physmap);
  for (let leaf = 0; leaf < layout.leafCount; leaf++) {
    const mfn = leafFrame(kernel, leaf);
    if (!isOwn(env, mfn)) throw panic(`its page tables do not reach page ${leaf} of its p2m`);
    const words = frames.pageWords(mfn);
    const end = Math.min(layout.pages, (leaf + 1) * layout.fpp);
    for (let pfn = leaf * layout.fpp; pfn < end; pfn++) {
      const entry = readP2m(words, pfn % layout.fpp, width);
      // An entry that names no memory of this guest is left out here and found by the check.
      physmap[pfn] = isOwn(env, entry) ? entry : 0;
    }
  }
  return kernel;
}

/** A kernel that runs already, for the thread that it runs in. */
export function openPvKernel(handle: PvKernelHandle, markDirty: (pfn: number) => void): PvKernel {
  const frames = MachineFrames.of(handle.memory);
  const { domid, width, contexts } = handle;
  const env: PvKernelEnv = { domid, width, frames, contexts, markDirty };
  const top = kernelTable(contextOf(env, 0), width);
  const data = walk(frames, top, width === 8 ? 4 : 3, dataVpnOf(width));
  const layout = isOwn(env, data) ? readLayout(frames.pageWords(data), width) : undefined;
  if (layout === undefined) throw panic('its data page is not there');
  return new PvKernel(env, layout, handle.physmap);
}

/** True for frames of the guest itself. */
export function isOwn(env: PvKernelEnv, mfn: number): boolean {
  return env.frames.ownerOf(mfn) === env.domid;
}

/** Frame of a p2m page, by the kernel's page tables; INVALID_FRAME if they do not reach one. */
export function leafFrame(kernel: PvKernel, leaf: number): number {
  const { layout } = kernel;
  return kernel.translate(
    layout.p2m === 'linear' ? layout.p2mVpn + leaf : layout.directVpn + layout.leaves.first + leaf,
  );
}

/** Entry `i` of a p2m page, INVALID_FRAME for all ones. */
export function readP2m(words: Uint32Array, i: number, width: GuestWidth): number {
  if (width === 4) {
    const entry = words[i] as number;
    return entry === 0xffff_ffff ? INVALID_FRAME : entry;
  }
  const hi = words[i * 2 + 1] as number;
  return hi === 0xffff_ffff ? INVALID_FRAME : hi * 0x1_0000_0000 + (words[i * 2] as number);
}

/** Writes entry `i` of a p2m page. */
export function writeP2m(words: Uint32Array, i: number, width: GuestWidth, mfn: number): void {
  if (width === 4) {
    words[i] = mfn < 0 ? 0xffff_ffff : mfn;
    return;
  }
  words[i * 2] = mfn < 0 ? 0xffff_ffff : mfn >>> 0;
  words[i * 2 + 1] = mfn < 0 ? 0xffff_ffff : Math.floor(mfn / 0x1_0000_0000);
}
