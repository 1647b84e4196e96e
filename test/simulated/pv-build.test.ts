import { describe, expect, it } from 'vitest';
import { pageTableLevel, PageType } from '../../lib/abi/pages.js';
import { fppOf, levelsOf, SHARED_INFO, START_INFO, VCPU_CONTEXT, XEN_HOLE } from '../../lib/abi/pv.js';
import { UsageError, HypercallError } from '../../lib/errors.js';
import { MachineMemory } from '../../lib/host/simulated/memory.js';
import { u32 } from '../../lib/bytes/le.js';
import {
  auditTypes,
  buildPv,
  checkKernel,
  cr3Of,
  entry,
  expectWhole,
  kernelOf,
  long,
  lookUp,
  makeDomain,
  shapes,
  toldLeaves,
  toldP2m,
} from './pv-helpers.js';

const DIRECT_MAP = { 4: 0xc000_0000n, 8: 0xffff_8880_0000_0000n };

describe.each(shapes)('a built PV guest, %s', (_name, options) => {
  const domain = makeDomain();
  const map = buildPv(domain, { vcpus: 3, ...options });
  const width = options.width ?? 8;
  const pages = options.pages ?? 4096;
  const { memory } = domain;
  const p2m = toldP2m(domain, pages);

  it('finds nothing wrong with itself', () => {
    expectWhole(checkKernel(kernelOf(domain, map)));
  });

  it('has machine frames that are no pfns, scattered', () => {
    const present = p2m.filter((mfn) => mfn >= 0);
    expect(new Set(present).size).toBe(present.length);
    expect(Math.min(...present)).toBeGreaterThan(pages);
    const neighbours = present.filter((mfn, i) => mfn + 1 === present[i + 1]).length;
    expect(neighbours).toBeLessThan(present.length / 20);
  });

  it('tells a p2m that the M2P agrees with, with holes', () => {
    const holes = p2m.filter((mfn) => mfn < 0).length;
    expect(p2m.filter((mfn, pfn) => mfn >= 0 && memory.pfnOf(mfn) !== pfn)).toEqual([]);
    expect(holes).toBeGreaterThan(10);
    let owned = 0;
    memory.forEachOwned(domain.domid, () => owned++);
    // Its RAM, and the shared info page.
    expect(owned).toBe(pages - holes + 1);
    expect(memory.pfnOf(domain.sharedInfoMfn)).toBe(-1);
    expect([...map.physmap]).toEqual(p2m.map((mfn) => Math.max(0, mfn)));
  });

  it('maps each page in its direct map, and holes not', () => {
    const top = cr3Of(domain);
    const mapped = p2m.map(
      (_, pfn) => lookUp(memory, top, width, DIRECT_MAP[width] + BigInt(pfn) * 4096n)?.frame ?? -1,
    );
    expect(mapped).toEqual(p2m);
  });

  it('has garbage in entries that are not present', () => {
    const hole = p2m.indexOf(-1);
    const near = lookUp(memory, cr3Of(domain), width, DIRECT_MAP[width] + BigInt((hole & ~511) * 4096));
    const e = entry(memory, near!.tables[1]!, hole & 511);
    expect(e.flags & 1n).toBe(0n);
    expect(e.raw).not.toBe(0n);
  });

  it('has types as the hypervisor would tell them', () => {
    const count = new Map<number, number>();
    for (const mfn of p2m) {
      if (mfn < 0) continue;
      const type = memory.typeOf(mfn);
      count.set(type, (count.get(type) ?? 0) + 1);
    }
    const some = (type: number): void => expect(count.get(type) ?? 0).toBeGreaterThan(0);
    [PageType.NOTAB, PageType.L1TAB, PageType.L2TAB].forEach(some);
    some(PageType.L1TAB | PageType.PINNED);
    some(levelsOf(width) | PageType.PINNED);
    if (width === 8) [PageType.L3TAB, PageType.L2TAB | 8, PageType.L3TAB | 8].forEach(some);
    if (width === 4) expect(count.get(PageType.L4TAB | PageType.PINNED)).toBeUndefined();
    // The pages of the p2m are plain memory to the hypervisor.
    for (const leaf of toldLeaves(domain, pages)) expect(memory.typeOf(leaf)).toBe(PageType.NOTAB);
    expect(memory.typeOf(domain.sharedInfoMfn)).toBe(PageType.XTAB);
    auditTypes(domain);
  });

  it('has page tables mapped read-only, and of its own frames alone', () => {
    const top = cr3Of(domain);
    let user = 0;
    const wrong: string[] = [];
    const must = (good: boolean, what: string): void => {
      if (!good) wrong.push(what);
    };
    for (const table of p2m) {
      const level = table < 0 ? 0 : pageTableLevel(memory.typeOf(table));
      if (level === 0) continue;
      for (let slot = 0; slot < 512; slot++) {
        const e = entry(memory, table, slot);
        if ((e.flags & 1n) === 0n) continue;
        const what = `level ${level} table of pfn ${memory.pfnOf(table)}, entry ${slot}`;
        const xen =
          (width === 8 && level === 4 && slot >= 256 && slot <= 271) ||
          (width === 4 &&
            level === 2 &&
            slot >= 428 &&
            entry(memory, table, 428).frame === memory.compatM2pMfn);
        const own = memory.ownerOf(e.frame) === domain.domid;
        must(xen ? e.frame === table || !own : own, `${what}: owner`);
        if (xen || !own) continue;
        const target = pageTableLevel(memory.typeOf(e.frame));
        if (level > 1) must(target === level - 1, `${what}: level ${target}`);
        else if ((e.flags & 2n) !== 0n) must(target === 0, `${what}: writable`);
        if (level === 1 && (e.flags & 4n) !== 0n && e.flags >> 52n === 0n) user++;
      }
      const at = lookUp(memory, top, width, DIRECT_MAP[width] + BigInt(memory.pfnOf(table)) * 4096n);
      const itself = entry(memory, at!.tables[1]!, memory.pfnOf(table) & 511);
      must((itself.flags & 2n) === 0n, `pfn ${memory.pfnOf(table)} is writable in the direct map`);
    }
    expect(wrong).toEqual([]);
    expect(user).toBeGreaterThan(0);
  });

  it('tells the toolstack where its p2m is', () => {
    const arch = SHARED_INFO[width];
    const shared = memory.page(domain.sharedInfoMfn);
    const told = Number(long(shared, arch.maxPfn, width));
    expect(domain.pv.maxGpfn()).toBe(told - 1);
    if (options.p2mTail === undefined) expect(told).toBe(pages);
    else expect(told).toBeGreaterThan(pages);
    const vaddr = long(shared, arch.p2mVaddr, width);
    const end = vaddr + BigInt((Math.ceil(told / fppOf(width)) - 1) * 4096);
    if (options.p2m === 'tree') {
      expect(long(shared, arch.p2mCr3, width)).toBe(0n);
    } else {
      expect(end < XEN_HOLE[width][0] || vaddr > XEN_HOLE[width][1]).toBe(true);
      expect(long(shared, arch.p2mGeneration, width)).toBe(0n);
    }
    if (options.unalignedP2m === true) {
      expect(vaddr % (1n << 30n)).not.toBe(0n);
      const last = vaddr + BigInt((Math.ceil(pages / fppOf(width)) - 1) * 4096);
      if (pages >= 0x4000) expect(last >> 21n).not.toBe(vaddr >> 21n);
    }
  });

  it('has its special pages in start_info', () => {
    const rdxPage = memory.page(map.physmap[16]!);
    const fields = START_INFO[width];
    expect(new TextDecoder().decode(rdxPage.subarray(0, 10))).toBe('xen-3.0-x8');
    expect(Number(long(rdxPage, fields.nrPages, width))).toBe(pages);
    for (const at of [fields.storeMfn, fields.consoleMfn]) {
      const mfn = Number(long(rdxPage, at, width));
      expect(memory.ownerOf(mfn)).toBe(domain.domid);
      expect(memory.typeOf(mfn)).toBe(PageType.NOTAB);
    }
    expect([u32(rdxPage, fields.storeEvtchn), u32(rdxPage, fields.consoleEvtchn)]).toEqual([1, 2]);
  });

  it('has three vcpus, the last one down', () => {
    expect([0, 1, 2].map((v) => domain.pv.vcpuOnline(v))).toEqual([true, true, false]);
    expect(domain.pv.vcpuOnline(3)).toBe(false);
    const sizes = (['basic', 'extended', 'xsave', 'msrs'] as const).map(
      (k) => domain.pv.vcpuState(0, k).length,
    );
    expect(sizes).toEqual([VCPU_CONTEXT[width].size, 64, 848, 16]);
    expect(domain.pv.vcpuState(1, 'msrs')).toHaveLength(0);
    expect(cr3Of(domain, 0)).not.toBe(cr3Of(domain, 1));
  });

  it('leaves plain pages to the workload', () => {
    const free = map.free.flatMap((r) => Array.from({ length: r.count }, (_, i) => r.first + i));
    const count = free.length;
    expect(free.filter((pfn) => p2m[pfn]! < 0 || memory.typeOf(p2m[pfn]!) !== PageType.NOTAB)).toEqual([]);
    expect(count).toBeGreaterThan(pages * 0.75);
    expect(map.free.length).toBeLessThanOrEqual(12);
  });
});

describe('building a PV guest', () => {
  it('gives the same guest for the same seed, on whatever host', () => {
    const build = (hostSeed: number, seed: number): { holes: number[]; data: Uint8Array } => {
      const domain = makeDomain({ seed: hostSeed });
      const map = buildPv(domain, { seed });
      const holes = [...map.physmap].flatMap((mfn, pfn) => (mfn === 0 ? [pfn] : []));
      return { holes, data: domain.memory.page(map.physmap[19]!).slice() };
    };
    expect(build(1, 5)).toEqual(build(2, 5));
    expect(build(1, 5).holes).not.toEqual(build(1, 6).holes);
  });

  it('builds a 32-bit guest of 1 GiB with its highest pages beyond the direct map', () => {
    const domain = makeDomain({ pages: 0x50000 });
    const map = buildPv(domain, { width: 4, pages: 0x40000 });
    expectWhole(checkKernel(kernelOf(domain, map)));
    const top = cr3Of(domain);
    expect(lookUp(domain.memory, top, 4, DIRECT_MAP[4] + 0x2bfffn * 4096n)?.frame).toBe(map.physmap[0x2bfff]);
    expect(lookUp(domain.memory, top, 4, DIRECT_MAP[4] + 0x2c000n * 4096n)).toBeUndefined();
    auditTypes(domain);
  });

  it('refuses what it cannot build', () => {
    expect(() => buildPv(makeDomain(), { pages: 512 })).toThrow(UsageError);
    expect(() => buildPv(makeDomain(), { vcpus: 5 })).toThrow(UsageError);
    expect(() => buildPv(makeDomain(), { vcpus: 0 })).toThrow(UsageError);
    expect(() => buildPv(makeDomain(), { p2mTail: 17 })).toThrow(UsageError);
    const small = makeDomain({ memory: new MachineMemory({ totalPages: 2048, seed: 1 }) });
    expect(() => buildPv(small)).toThrow(HypercallError);
    expect(() => buildPv(small)).toThrow(/ENOMEM/);
  });
});
