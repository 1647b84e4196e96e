/** A PV domain without the host around it, and a second opinion on its page tables and types. */
import { expect } from 'vitest';
import { cr3ToFrame, fppOf, levelsOf, SHARED_INFO, VCPU_CONTEXT, type GuestWidth } from '../../lib/abi/pv.js';
import { PAGE_SIZE } from '../../lib/abi/pages.js';
import { u32, u64 } from '../../lib/bytes/le.js';
import { MachineMemory } from '../../lib/host/simulated/memory.js';
import { checkKernel, type PvCheck } from '../../lib/host/simulated/pv-check.js';
import { createPvDomain } from '../../lib/host/simulated/pv-domain.js';
import { openPvKernel, type PvKernel } from '../../lib/host/simulated/pv-kernel.js';
import type { PvDomain, PvGuestMap, PvGuestOptions } from '../../lib/host/simulated/pv-types.js';

export interface TestDomain {
  readonly domid: number;
  readonly memory: MachineMemory;
  readonly sharedInfoMfn: number;
  readonly pv: PvDomain;
  /** pfns marked since the test last cleared it. */
  readonly dirty: Set<number>;
}

export interface TestDomainOptions {
  readonly memory?: MachineMemory;
  readonly domid?: number;
  /** Frames of the host. */
  readonly pages?: number;
  readonly seed?: number;
  readonly maxVcpus?: number;
}

export function makeDomain(options: TestDomainOptions = {}): TestDomain {
  const memory =
    options.memory ?? new MachineMemory({ totalPages: options.pages ?? 0x8000, seed: options.seed ?? 7 });
  const domid = options.domid ?? 1;
  const dirty = new Set<number>();
  const frame = new Float64Array(1);
  memory.allocScattered(domid, 1, frame);
  const sharedInfoMfn = frame[0]!;
  const pv = createPvDomain({
    domid,
    memory,
    maxVcpus: options.maxVcpus ?? 4,
    sharedInfoMfn,
    seed: 1,
    allocate: (frames) => populate(memory, domid, frames),
    release: (mfn) => memory.free(mfn),
    markDirty: (pfn) => dirty.add(pfn),
  });
  return { domid, memory, sharedInfoMfn, pv, dirty };
}

/** XENMEM_populate_physmap: pfns in, mfns out. */
export function populate(memory: MachineMemory, domid: number, frames: Float64Array): number {
  const mfns = new Float64Array(frames.length);
  const n = memory.allocScattered(domid, frames.length, mfns);
  for (let i = 0; i < n; i++) {
    memory.setM2p(mfns[i]!, frames[i]!);
    frames[i] = mfns[i]!;
  }
  return n;
}

export function buildPv(domain: TestDomain, options: Partial<PvGuestOptions> = {}): PvGuestMap {
  const width = options.width ?? 8;
  domain.pv.setWidth(width);
  return domain.pv.construct({
    width,
    pages: 4096,
    vcpus: 2,
    p2m: 'linear',
    seed: 3,
    storeEvtchn: 1,
    consoleEvtchn: 2,
    ...options,
  });
}

/** The kernel as a worker would have it. */
export function kernelOf(domain: TestDomain, map: PvGuestMap): PvKernel {
  return openPvKernel(map.kernel, (pfn) => domain.dirty.add(pfn));
}

export function expectWhole(check: PvCheck): void {
  expect(check.first).toBeUndefined();
  expect(check.faults).toBe(0);
  expect(check.entries).toBeGreaterThan(0);
}

/** Every kind of guest that there is. */
export const shapes: readonly (readonly [string, Partial<PvGuestOptions>])[] = ([8, 4] as const).flatMap(
  (width) => [
    [`${width * 8}-bit, linear p2m`, { width, p2m: 'linear' }] as const,
    [
      `${width * 8}-bit, linear p2m across two tables`,
      { width, p2m: 'linear', unalignedP2m: true, pages: 0x4000 },
    ] as const,
    [
      `${width * 8}-bit, linear p2m with a tail`,
      { width, p2m: 'linear', p2mTail: 3, unalignedP2m: true },
    ] as const,
    [`${width * 8}-bit, tree`, { width, p2m: 'tree' }] as const,
    [`${width * 8}-bit, tree with a tail`, { width, p2m: 'tree', p2mTail: 2 }] as const,
  ],
);

// A second opinion: written against the interface of guests and hypervisor, not against the model.

/** Entry of a table as a number without flags (frame) and the flags. */
export function entry(
  memory: MachineMemory,
  table: number,
  slot: number,
): { frame: number; flags: bigint; raw: bigint } {
  const raw = u64(memory.page(table), slot * 8);
  return { frame: Number((raw >> 12n) & 0xff_ffff_ffffn), flags: raw & 0xfff0_0000_0000_0fffn, raw };
}

export function setEntry(memory: MachineMemory, table: number, slot: number, raw: bigint): void {
  new DataView(memory.page(table).buffer, memory.page(table).byteOffset, PAGE_SIZE).setBigUint64(
    slot * 8,
    raw,
    true,
  );
}

/** Frame of a virtual address by the tables under `top`, undefined if it is not mapped; and the table of each level. */
export function lookUp(
  memory: MachineMemory,
  top: number,
  width: GuestWidth,
  vaddr: bigint,
): { frame: number; tables: number[] } | undefined {
  const tables: number[] = [];
  let frame = top;
  for (let level = levelsOf(width); level > 0; level--) {
    tables[level] = frame;
    const e = entry(memory, frame, Number((vaddr >> BigInt(12 + 9 * (level - 1))) & 511n));
    if ((e.flags & 1n) === 0n) return undefined;
    frame = e.frame;
  }
  return { frame, tables };
}

export function cr3Of(domain: TestDomain, vcpu = 0): number {
  const { width } = domain.pv;
  const context = domain.pv.vcpuState(vcpu, 'basic');
  const at = VCPU_CONTEXT[width].ctrlreg + 3 * width;
  return cr3ToFrame(width === 8 ? u64(context, at) : BigInt(u32(context, at)), width);
}

export function long(page: Uint8Array, at: number, width: GuestWidth): bigint {
  return width === 8 ? u64(page, at) : BigInt(u32(page, at));
}

/** The frames of the p2m's pages as shared info tells them to a toolstack, up to those that `pages` entries need. */
export function toldLeaves(domain: TestDomain, pages: number): number[] {
  const { memory } = domain;
  const { width } = domain.pv;
  const shared = memory.page(domain.sharedInfoMfn);
  const arch = SHARED_INFO[width];
  const fpp = fppOf(width);
  const leaves: number[] = [];
  const cr3 = long(shared, arch.p2mCr3, width);
  const vaddr = long(shared, arch.p2mVaddr, width);
  for (let i = 0; i * fpp < pages; i++) {
    if (cr3 !== 0n) {
      const found = lookUp(memory, cr3ToFrame(cr3, width), width, vaddr + BigInt(i * PAGE_SIZE));
      leaves.push(found?.frame ?? -1);
    } else {
      const top = Number(long(shared, arch.frameListList, width));
      const list = Number(long(memory.page(top), Math.floor(i / fpp) * width, width));
      leaves.push(Number(long(memory.page(list), (i % fpp) * width, width)));
    }
  }
  return leaves;
}

/** mfn of each pfn by the p2m that shared info tells, -1 for none. */
export function toldP2m(domain: TestDomain, pages: number): number[] {
  const { width } = domain.pv;
  const fpp = fppOf(width);
  const p2m: number[] = [];
  for (const leaf of toldLeaves(domain, pages)) {
    const page = domain.memory.page(leaf);
    for (let i = 0; i < fpp && p2m.length < pages; i++) {
      const value = long(page, i * width, width);
      p2m.push(value === (width === 8 ? 0xffff_ffff_ffff_ffffn : 0xffff_ffffn) ? -1 : Number(value));
    }
  }
  return p2m;
}

const COUNT = 0xff_ffff;

/**
 * Counts all uses of the domain's frames anew, from vcpus, pins and validated tables, and compares them with the
 * hypervisor's. A lost or double count would let a table change unseen, or never be free again.
 */
export function auditTypes(domain: TestDomain): void {
  const { memory, domid, pv } = domain;
  const { width } = pv;
  const expected = new Map<number, number>();
  const use = (mfn: number): void => void expected.set(mfn, (expected.get(mfn) ?? 0) + 1);
  use(domain.sharedInfoMfn);
  for (let v = 0; v < 4; v++) {
    let context: Uint8Array;
    try {
      context = pv.vcpuState(v, 'basic');
    } catch {
      continue;
    }
    const layout = VCPU_CONTEXT[width];
    use(cr3Of(domain, v));
    if (width === 8 && u64(context, layout.ctrlreg + 8) !== 0n)
      use(cr3ToFrame(u64(context, layout.ctrlreg + 8), 8));
    const ents = Number(long(context, layout.gdtEnts, width));
    for (let i = 0; i < Math.ceil(ents / 512); i++) {
      use(Number(long(context, layout.gdtFrames + i * width, width)));
    }
  }
  memory.forEachOwned(domid, (mfn) => {
    const info = memory.typeInfoOf(mfn);
    const level = (info >>> 24) & 7;
    if ((info & 0x1000_0000) !== 0) use(mfn);
    if ((info & 0x2000_0000) === 0) return;
    const paeXen = (info & 0x0800_0000) !== 0;
    for (let slot = 0; slot < 512; slot++) {
      if (width === 8 && level === 4 && slot >= 256 && slot < 272) continue;
      if (width === 4 && ((level === 3 && slot >= 4) || (level === 2 && paeXen && slot >= 428))) continue;
      const e = entry(memory, mfn, slot);
      if ((e.flags & 1n) === 1n && (level > 1 || (e.flags & 2n) !== 0n)) use(e.frame);
    }
  });
  const wrong: string[] = [];
  memory.forEachOwned(domid, (mfn) => {
    const has = memory.typeInfoOf(mfn) & COUNT;
    const wants = expected.get(mfn) ?? 0;
    if (has !== wants) wrong.push(`pfn ${memory.pfnOf(mfn)}: ${has} uses, ${wants} found`);
  });
  expect(wrong).toEqual([]);
}

export { checkKernel };
