/**
 * Builds a PV guest in an empty domain, as a domain builder and then the guest's own kernel would: memory, p2m, page
 * tables, vcpus, the pages shared with the toolstack, and a few processes.
 */
import { PAGE_SIZE } from '../../abi/pages.js';
import { frameToCr3, PTES, START_INFO, VCPU_CONTEXT, VGCF_ONLINE } from '../../abi/pv.js';
import { setU32, setU64 } from '../../bytes/le.js';
import { Errno } from '../../abi/errno.js';
import { Xoshiro } from './prng.js';
import { absentEntry } from './pv-activity.js';
import { pteHigh, pteLow, walk } from './pv-frames.js';
import { DATA, PvKernel, writeP2m, writeShape, type PvKernelEnv } from './pv-kernel.js';
import { p2mPage, type PvLayout } from './pv-layout.js';
import { growProcess, pinProcess, ProcessState, switchTo } from './pv-process.js';
import { publishP2m, setSharedInfoMapping, writeFrameLists } from './pv-suspend.js';
import { kernelFlags, kernelHighFlags, TableBuilder } from './pv-tables.js';
import { ctrlreg, writeLong, type PvVcpus } from './pv-vcpu.js';
import { refusal } from './refuse.js';

/** What the builder needs beside the kernel's surroundings. */
export interface PvBuildTools {
  readonly env: PvKernelEnv;
  readonly vcpus: PvVcpus;
  readonly sharedInfoMfn: number;
  /** See `PvDomainCore.allocate`. */
  readonly allocate: (frames: Float64Array) => number;
  readonly storeEvtchn: number;
  readonly consoleEvtchn: number;
  /** Bits of `Activity`. */
  readonly activity: number;
}

/** Eight-byte descriptors of a flat GDT, as far as a PV kernel has a say: code and data of ring 3. */
const GDT_CODE = 0x00af_fb00_0000_ffffn;
const GDT_DATA = 0x00cf_f300_0000_ffffn;
const GDT_ENTRIES = 16;
/** Code, data and flags of a context: in kernel mode, FPU state valid. */
const CONTEXT_FLAGS = 0x1d;
const CR0 = 0x8005_0033;
const CR4 = 0x660;
const MSR_MISC_FEATURES = 0x140;
/** An MXCSR and FCW that a processor accepts. */
const FCW = 0x037f;
const MXCSR = 0x1f80;

export function buildGuest(layout: PvLayout, tools: PvBuildTools): PvKernel {
  const { env } = tools;
  const physmap = allocate(layout, tools);
  const kernel = new PvKernel(env, layout, physmap);
  writeShape(kernel.data, layout, tools.activity);
  const rng = new Xoshiro(layout.seed ^ 0x6b65_726e);
  writeRamMap(kernel);
  writeP2mPages(kernel);
  writeGdt(kernel);
  const top = writeTables(kernel);
  kernel.expect(kernel.mmu.pin(top, layout.levels));
  pinSome(kernel, top);
  for (let v = 0; v < layout.vcpus; v++) startVcpu(kernel, tools, v, top);
  writeStartInfo(kernel, tools);
  setSharedInfoMapping(kernel, tools.sharedInfoMfn);
  if (layout.p2m === 'tree') writeFrameLists(kernel);
  publishP2m(kernel);

  // Half of the processes there can be run, the next is under construction.
  const live = layout.processCount >> 1;
  for (let p = 0; p <= live; p++) {
    growProcess(kernel, p, rng);
    if (p < live) pinProcess(kernel, p, ProcessState.LIVE);
  }
  // vcpu 1 idles on the kernel's own tables.
  for (let v = 0; v < layout.vcpus; v++) if (v !== 1) switchTo(kernel, v, v % live);
  kernel.data.set(rng.state, DATA.RNG);
  return kernel;
}

/** Memory for all pfns but those that start out ballooned out. */
function allocate(layout: PvLayout, tools: PvBuildTools): Uint32Array {
  const { pages, holes } = layout;
  const physmap = new Uint32Array(new SharedArrayBuffer(pages * 4)).fill(1);
  for (const hole of holes) physmap.fill(0, hole.first, hole.first + hole.count);
  const frames = new Float64Array(pages);
  let n = 0;
  for (let pfn = 0; pfn < pages; pfn++) if (physmap[pfn] !== 0) frames[n++] = pfn;
  if (tools.allocate(frames.subarray(0, n)) !== n) {
    throw refusal('XENMEM_populate_physmap', Errno.ENOMEM, `no memory for ${n} pages`, tools.env.domid);
  }
  n = 0;
  for (let pfn = 0; pfn < pages; pfn++) if (physmap[pfn] !== 0) physmap[pfn] = frames[n++] as number;
  return physmap;
}

function writeRamMap(kernel: PvKernel): void {
  const { pages, ramMap } = kernel.layout;
  for (let page = 0; page < ramMap.count; page++) {
    const words = kernel.page(ramMap.first + page);
    const end = Math.min(pages, (page + 1) << 15);
    for (let pfn = page << 15; pfn < end; pfn++) {
      if (kernel.physmap[pfn] === 0) continue;
      const w = (pfn >>> 5) & 1023;
      words[w] = (words[w] as number) | (1 << (pfn & 31));
    }
  }
}

function writeP2mPages(kernel: PvKernel): void {
  const { leaves, leafCount, fpp, width, pages } = kernel.layout;
  for (let i = 0; i < leaves.count; i++) {
    const words = kernel.page(leaves.first + i).fill(0xffff_ffff);
    if (i >= leafCount) continue;
    const end = Math.min(pages, (i + 1) * fpp);
    for (let pfn = i * fpp; pfn < end; pfn++) {
      const mfn = kernel.physmap[pfn] as number;
      if (mfn !== 0) writeP2m(words, pfn % fpp, width, mfn);
    }
  }
}

function writeGdt(kernel: PvKernel): void {
  const { gdt } = kernel.layout;
  for (let v = 0; v < gdt.count; v++) {
    const page = kernel.env.frames.page(kernel.mfn(gdt.first + v));
    setU64(page, 8, GDT_CODE);
    setU64(page, 16, GDT_DATA);
  }
}

/** The kernel's page tables, in plain memory yet. Returns the top one's frame. */
function writeTables(kernel: PvKernel): number {
  const { layout, env } = kernel;
  const { width, tables, gdt } = layout;
  let next = tables.first;
  const builder = new TableBuilder(env.frames, width, layout.levels, () => kernel.mfn(next++));
  const hi = kernelHighFlags(width);
  const set = (vpn: number, pfn: number, writable: boolean): void => {
    const mfn = kernel.mfn(pfn);
    builder.set(vpn, pteLow(mfn, kernelFlags(width, writable)), pteHigh(mfn, hi));
  };
  for (let pfn = 0; pfn < layout.directPages; pfn++) {
    if (kernel.physmap[pfn] === 0) {
      const absent = absentEntry(pfn);
      builder.set(layout.directVpn + pfn, absent.lo, absent.hi);
      continue;
    }
    const readOnly =
      (pfn >= tables.first && pfn < tables.first + tables.count) ||
      (pfn >= gdt.first && pfn < gdt.first + gdt.count);
    set(layout.directVpn + pfn, pfn, !readOnly);
  }
  writeP2mMapping(kernel, builder, set);
  set(layout.dataVpn, layout.data, true);
  // A table for the shared info page, which is mapped when there is somebody to ask.
  builder.table(layout.sharedVpn, 1);
  return builder.top;
}

function writeP2mMapping(
  kernel: PvKernel,
  builder: TableBuilder,
  set: (vpn: number, pfn: number, writable: boolean) => void,
): void {
  const { layout } = kernel;
  // All level 2 entries of the tail name one table, in which all entries name one empty page.
  const tailFrom = layout.p2mVpn + layout.p2mMapped - (layout.p2mTail - 1) * PTES;
  const own = layout.p2mTail > 0 ? tailFrom - layout.p2mVpn : layout.p2mMapped;
  for (let i = 0; i < own; i++) set(layout.p2mVpn + i, p2mPage(layout, i), i < layout.leafCount);
  for (let t = 0; t + 1 < layout.p2mTail && layout.p2mMapped > 0; t++) {
    builder.share(tailFrom + t * PTES, builder.table(tailFrom - 1, 1));
  }
}

/** Some tables below the top one are pinned as well, as Linux does with those that it makes early. */
function pinSome(kernel: PvKernel, top: number): void {
  const { layout, env } = kernel;
  const pin = (vpn: number, level: number): void => {
    const table = walk(env.frames, top, layout.levels, vpn, level + 1);
    if (!kernel.mmu.isPinned(table)) kernel.expect(kernel.mmu.pin(table, level));
  };
  for (let pfn = 0; pfn < layout.directPages; pfn += 4 * PTES) pin(layout.directVpn + pfn, 1);
  if (layout.p2mMapped > 0) pin(layout.p2mVpn, 1);
  if (layout.width === 8) {
    pin(layout.directVpn, 3);
    pin(layout.dataVpn, 2);
  }
}

function startVcpu(kernel: PvKernel, tools: PvBuildTools, vcpu: number, top: number): void {
  const { width, gdt, vcpus } = kernel.layout;
  const fields = VCPU_CONTEXT[width];
  const context = new Uint8Array(fields.size);
  // FCW and MXCSR of the FXSAVE image.
  setU32(context, 0, FCW);
  setU32(context, 24, MXCSR);
  // With three vcpus or more, the last one is down.
  const online = vcpu < 2 || vcpu < vcpus - 1;
  writeLong(context, fields.flags, width, CONTEXT_FLAGS | (online ? VGCF_ONLINE : 0));
  writeLong(context, fields.gdtFrames, width, kernel.mfn(gdt.first + vcpu));
  writeLong(context, fields.gdtEnts, width, GDT_ENTRIES);
  writeLong(context, ctrlreg(width, 0), width, CR0);
  setU32(context, ctrlreg(width, 3), Number(frameToCr3(top, width) & 0xffff_ffffn));
  if (width === 8) setU64(context, ctrlreg(width, 3), frameToCr3(top, width));
  writeLong(context, ctrlreg(width, 4), width, CR4);
  tools.vcpus.set(vcpu, 'basic', context);
  if (vcpu === 0) {
    const msr = new Uint8Array(16);
    setU32(msr, 0, MSR_MISC_FEATURES);
    setU32(msr, 8, 1);
    tools.vcpus.set(vcpu, 'msrs', msr);
  }
}

function writeStartInfo(kernel: PvKernel, tools: PvBuildTools): void {
  const { layout, env } = kernel;
  const { width } = layout;
  const page = env.frames.page(kernel.mfn(layout.startInfo));
  const fields = START_INFO[width];
  page.set(new TextEncoder().encode(`xen-3.0-x86_${width === 8 ? '64' : '32p'}`));
  writeLong(page, fields.nrPages, width, layout.pages);
  const shared = BigInt(tools.sharedInfoMfn) * BigInt(PAGE_SIZE);
  setU32(page, fields.sharedInfo, Number(shared & 0xffff_ffffn));
  if (width === 8) setU32(page, fields.sharedInfo + 4, Number(shared >> 32n));
  writeLong(page, fields.storeMfn, width, kernel.mfn(layout.store));
  setU32(page, fields.storeEvtchn, tools.storeEvtchn);
  writeLong(page, fields.consoleMfn, width, kernel.mfn(layout.console));
  setU32(page, fields.consoleEvtchn, tools.consoleEvtchn);
}
