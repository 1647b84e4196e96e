import { describe, expect, it } from 'vitest';
import { pageTableLevel, PageType } from '../../lib/abi/pages.js';
import { fppOf, SHARED_INFO, START_INFO, VCPU_CONTEXT } from '../../lib/abi/pv.js';
import { u32 } from '../../lib/bytes/le.js';
import { GuestError } from '../../lib/errors.js';
import { tickKernel } from '../../lib/host/simulated/pv-activity.js';
import { verifyPage } from '../../lib/host/simulated/pv-check.js';
import type { PvKernel } from '../../lib/host/simulated/pv-kernel.js';
import { REGISTERS_SIZE, type PvGuestMap, type PvGuestOptions } from '../../lib/host/simulated/pv-types.js';
import {
  auditTypes,
  buildPv,
  checkKernel,
  cr3Of,
  expectWhole,
  kernelOf,
  long,
  lookUp,
  makeDomain,
  setEntry,
  entry,
  shapes,
  toldLeaves,
  toldP2m,
  type TestDomain,
} from './pv-helpers.js';
import { putImage, takeImage } from './pv-image.js';

const DIRECT_MAP = { 4: 0xc000_0000n, 8: 0xffff_8880_0000_0000n };
const PAGES = 4096;

function run(kernel: PvKernel, ticks: number): void {
  for (let i = 0; i < ticks; i++) expect(tickKernel(kernel)).toBeUndefined();
}

function guest(options: Partial<PvGuestOptions> = {}): {
  domain: TestDomain;
  map: PvGuestMap;
  kernel: PvKernel;
} {
  const domain = makeDomain();
  const map = buildPv(domain, options);
  return { domain, map, kernel: kernelOf(domain, map) };
}

/** Types of all frames, by pfn. */
function types(domain: TestDomain): Map<number, number> {
  const found = new Map<number, number>();
  domain.memory.forEachOwned(domain.domid, (mfn) => {
    if (domain.memory.pfnOf(mfn) >= 0) found.set(domain.memory.pfnOf(mfn), domain.memory.typeOf(mfn));
  });
  return found;
}

const registers = Uint8Array.from({ length: REGISTERS_SIZE }, (_, i) => i ^ 0x5a);

describe.each(shapes)('a PV kernel, %s', (_name, options) => {
  const pages = options.pages ?? PAGES;

  it('changes page tables while it runs, keeps types right, and marks what it writes', () => {
    const { domain, kernel } = guest(options);
    const tableBefore = cr3Of(domain);
    const snapshot = new Map<number, Uint8Array>();
    for (const pfn of types(domain).keys())
      snapshot.set(pfn, domain.memory.page(kernel.physmap[pfn]!).slice());
    domain.dirty.clear();
    run(kernel, 400);
    expectWhole(checkKernel(kernel));
    auditTypes(domain);
    const changed = [...snapshot].filter(
      ([pfn, bytes]) => Buffer.compare(bytes, domain.memory.page(kernel.physmap[pfn]!)) !== 0,
    );
    const unmarked = changed.map(([pfn]) => pfn).filter((pfn) => !domain.dirty.has(pfn));
    expect(unmarked).toEqual([]);
    const now = types(domain);
    const tables = changed.filter(([pfn]) => pageTableLevel(now.get(pfn)!) > 0);
    expect(tables.length).toBeGreaterThan(4);
    expect(cr3Of(domain)).not.toBe(tableBefore);
  });

  it('suspends as a PV guest does', () => {
    const { domain, map, kernel } = guest(options);
    const width = domain.pv.width;
    run(kernel, 50);
    domain.pv.suspend(registers);
    const context = domain.pv.vcpuState(0, 'basic');
    const rdx = Number(long(context, VCPU_CONTEXT[width].rdx, width));
    expect(domain.memory.pfnOf(rdx)).toBe(16);
    expect(long(context, VCPU_CONTEXT[width].rax, width)).toBe(0n);
    const info = domain.memory.page(rdx);
    const store = Number(long(info, START_INFO[width].storeMfn, width));
    const console = Number(long(info, START_INFO[width].consoleMfn, width));
    expect([store, console]).toEqual([17, 18]);
    expect(map.physmap[store]).toBeGreaterThan(pages);
    // No page table may name a frame without a pfn now: the shared info page is not mapped.
    const unknown: string[] = [];
    for (const [pfn, type] of types(domain)) {
      if (pageTableLevel(type) !== 1) continue;
      for (let slot = 0; slot < 512; slot++) {
        const e = entry(domain.memory, map.physmap[pfn]!, slot);
        if ((e.flags & 1n) === 1n && domain.memory.pfnOf(e.frame) < 0) unknown.push(`${pfn}: ${slot}`);
      }
    }
    expect(unknown).toEqual([]);
    expect(domain.pv.registers()).toEqual(registers);
    expect(domain.pv.vcpuState(0, 'xsave').subarray(16, 528)).toEqual(context.subarray(0, 512));
    auditTypes(domain);
  });

  it('goes on after a cancelled suspend', () => {
    const { domain, kernel } = guest(options);
    run(kernel, 50);
    const before = types(domain);
    domain.pv.suspend(registers);
    const map = domain.pv.resume('cancelled')!;
    const info = domain.memory.page(map.physmap[16]!);
    const { width } = domain.pv;
    expect(Number(long(info, START_INFO[width].storeMfn, width))).toBe(map.physmap[17]);
    expect(Number(long(info, START_INFO[width].consoleMfn, width))).toBe(map.physmap[18]);
    expect(types(domain)).toEqual(before);
    const again = kernelOf(domain, map);
    expectWhole(checkKernel(again));
    run(again, 50);
    expectWhole(checkKernel(again));
    auditTypes(domain);
  });

  it('can be saved again where it was restored, without having run', () => {
    const { domain, kernel } = guest(options);
    run(kernel, 60);
    domain.pv.suspend(registers);
    const image = takeImage(domain, pages);
    const other = makeDomain({ seed: 99, domid: 3 });
    putImage(other, image);
    other.pv.suspend(undefined);
    const again = takeImage(other, pages);
    expectSameMemory(image, again);
    expect(again.vcpus).toEqual(image.vcpus);
    auditTypes(other);
    expectWhole(checkKernel(kernelOf(other, other.pv.resume('cancelled')!)));
  });

  it('moves to another host and goes on there as it would have here', () => {
    const { domain, kernel, map } = guest(options);
    run(kernel, 60);
    domain.pv.suspend(registers);
    const image = takeImage(domain, pages);
    const other = makeDomain({ seed: 99, domid: 3 });
    putImage(other, image);
    const moved = other.pv.resume('restored')!;
    expect(moved.free).toEqual(map.free);
    expect([...moved.physmap].filter((mfn, pfn) => mfn !== 0 && mfn === map.physmap[pfn])).toEqual([]);
    const there = kernelOf(other, moved);
    expectWhole(checkKernel(there));
    auditTypes(other);
    expect(other.pv.registers()).toEqual(registers);
    expect(other.pv.maxGpfn()).toBe(domain.pv.maxGpfn());
    expect(toldP2m(other, pages)).toEqual([...moved.physmap].map((mfn) => (mfn === 0 ? -1 : mfn)));

    const here = kernelOf(domain, domain.pv.resume('cancelled')!);
    run(here, 100);
    run(there, 100);
    domain.pv.suspend(undefined);
    other.pv.suspend(undefined);
    expectSameMemory(takeImage(domain, pages), takeImage(other, pages));
  });
});

/** All pages are the same but for those that hold frame numbers of the host. */
function expectSameMemory(a: ReturnType<typeof takeImage>, b: ReturnType<typeof takeImage>): void {
  expect(b.leaves).toEqual(a.leaves);
  const frames = new Set([...a.leaves, 16]);
  // Frame lists lie right after the p2m.
  for (let pfn = Math.max(...a.leaves); pfn < a.pages && a.memory.get(pfn)?.type === PageType.NOTAB; pfn++)
    frames.add(pfn);
  const different = [...a.memory].filter(([pfn, { type, bytes }]) => {
    const other = b.memory.get(pfn);
    if (other === undefined || other.type !== type) return true;
    return !frames.has(pfn) && Buffer.compare(bytes, other.bytes) !== 0;
  });
  expect(different.map(([pfn]) => pfn)).toEqual([]);
  expect(b.memory.size).toBe(a.memory.size);
}

describe('what a PV kernel notices', () => {
  type Spoil = (domain: TestDomain, map: PvGuestMap, kernel: PvKernel) => void;
  /** Some pfns of the workload's pages. */
  const [P, Q] = [100, 1500];
  const p2mEntry = (domain: TestDomain, pfn: number): { page: Uint8Array; at: number } => {
    const { width } = domain.pv;
    const page = domain.memory.page(toldLeaves(domain, PAGES)[Math.floor(pfn / fppOf(width))]!);
    return { page, at: (pfn % fppOf(width)) * width };
  };
  const swap = (
    a: { page: Uint8Array; at: number },
    b: { page: Uint8Array; at: number },
    n: number,
  ): void => {
    const held = a.page.slice(a.at, a.at + n);
    a.page.set(b.page.subarray(b.at, b.at + n), a.at);
    b.page.set(held, b.at);
  };
  const direct = (domain: TestDomain, pfn: number): { table: number; slot: number } => {
    const { width } = domain.pv;
    // By a page that the same table maps: the page itself may have been ballooned out.
    for (let near = pfn & ~511; ; near++) {
      const found = lookUp(domain.memory, cr3Of(domain), width, DIRECT_MAP[width] + BigInt(near) * 4096n);
      if (found !== undefined) return { table: found.tables[1]!, slot: pfn & 511 };
    }
  };
  /** Table pages of process 0. */
  const process = (map: PvGuestMap, page: number): number => map.physmap[PAGES / 2 + page]!;

  const cases: readonly (readonly [string, string, Spoil])[] = [
    ['a direct map entry that names another page', 'page-table', (d, map) => {
      const { table, slot } = direct(d, P);
      const e = entry(d.memory, table, slot);
      setEntry(d.memory, table, slot, e.flags | (BigInt(map.physmap[Q]!) << 12n));
    }],
    ['a direct map entry that still has a pfn', 'page-table', (d) => {
      const { table, slot } = direct(d, P);
      setEntry(d.memory, table, slot, entry(d.memory, table, slot).flags | (BigInt(P) << 12n));
    }],
    ['a direct map entry that is gone', 'page-table', (d) => {
      const { table, slot } = direct(d, P);
      setEntry(d.memory, table, slot, 0n);
    }],
    ['a mapping of a ballooned-out page', 'page-table', (d, map) => {
      const { table, slot } = direct(d, map.physmap.indexOf(0));
      setEntry(d.memory, table, slot, (BigInt(map.physmap[P]!) << 12n) | 1n);
    }],
    ['two p2m entries changed over', 'p2m', (d) => swap(p2mEntry(d, P), p2mEntry(d, Q), d.pv.width)],
    ['a lost page', 'p2m', (d) => {
      const { page, at } = p2mEntry(d, P);
      page.fill(0xff, at, at + d.pv.width);
    }],
    ['a p2m entry of another host', 'p2m', (d) => {
      const { page, at } = p2mEntry(d, P);
      page[at + 2] = page[at + 2]! ^ 0x40;
    }],
    ['a page that came back from the balloon by itself', 'p2m', (d, map) => {
      swap(p2mEntry(d, map.physmap.indexOf(0)), p2mEntry(d, P), d.pv.width);
    }],
    ['an M2P entry of another page', 'm2p', (d, map) => d.memory.setM2p(map.physmap[P]!, Q)],
    ['a page table of its own mapped writable', 'page-table', (d, map) => {
      const { table, slot } = direct(d, d.memory.pfnOf(cr3Of(d)));
      const e = entry(d.memory, table, slot);
      setEntry(d.memory, table, slot, e.raw | 2n);
      expect(map.physmap.length).toBe(PAGES);
    }],
    ['a process page table with a swapped entry', 'page-table', (d, map) => {
      const page = d.memory.page(process(map, 4));
      const filled = Array.from({ length: 512 }, (_, i) => i).filter((i) => u32(page, i * 8) !== 0);
      setEntry(d.memory, process(map, 4), filled[0]!, entry(d.memory, process(map, 4), filled[1]!).raw);
    }],
    ['a process with its tables mixed up', 'page-table', (d, map, kernel) => {
      const l2 = process(map, kernel.layout.width === 8 ? 3 : 2);
      swap({ page: d.memory.page(l2), at: 16 }, { page: d.memory.page(l2), at: 32 }, 8);
    }],
    ['an entry of the kernel too many', 'page-table', (d, map) => {
      const { table } = direct(d, P);
      const top = cr3Of(d);
      const slot = d.pv.width === 8 ? 300 : 1;
      const level2 = d.pv.width === 8 ? top : lookUp(d.memory, top, 4, DIRECT_MAP[4])!.tables[2]!;
      setEntry(d.memory, level2, d.pv.width === 8 ? slot : 300, (BigInt(table) << 12n) | 1n);
      expect(map.physmap.length).toBe(PAGES);
    }],
    [
      'tables that lead in circles',
      'page-table',
      (d) => {
        // All of the top table's free entries name what the direct map's entry names.
        const top = cr3Of(d);
        const wide = d.pv.width === 8;
        const { raw } = entry(d.memory, top, wide ? 273 : 3);
        for (let slot = wide ? 274 : 0; slot < (wide ? 400 : 3); slot++) setEntry(d.memory, top, slot, raw);
      },
    ],
    ['a damaged RAM map', 'p2m', (d, map) => d.memory.page(map.physmap[20]!).fill(0, 4, 8)],
  ]; // prettier-ignore

  describe.each([
    ['64-bit linear', { width: 8, p2m: 'linear' }],
    ['64-bit tree', { width: 8, p2m: 'tree' }],
    ['32-bit linear', { width: 4, p2m: 'linear' }],
    ['32-bit tree', { width: 4, p2m: 'tree' }],
  ] as const)('%s', (_kind, options) => {
    it.each(cases)('%s', (_what, kind, spoil) => {
      const { domain, map, kernel } = guest({ ...options, vcpus: 1 });
      // vcpu 0 on the kernel's own tables, so that those are the ones that are spoilt.
      spoil(domain, map, kernel);
      const check = checkKernel(kernel);
      expect(check.faults).toBeGreaterThan(0);
      expect(check.first?.kind).toBe(kind);
    });
  });

  it('in passing, if it comes by', () => {
    const { domain, map, kernel } = guest();
    domain.memory.setM2p(map.physmap[P]!, Q);
    expect(verifyPage(kernel, P)?.kind).toBe('m2p');
    expect(verifyPage(kernel, P + 1)).toBeUndefined();
    let fault: ReturnType<typeof tickKernel>;
    for (let i = 0; i < 20_000; i++) {
      fault = tickKernel(kernel);
      if (fault !== undefined) break;
    }
    expect(fault).toMatchObject({ pfn: P, kind: 'm2p' });
  });

  it('when it comes back to what is not its world', () => {
    const broken = (spoil: (domain: TestDomain, map: PvGuestMap) => void, why: RegExp): void => {
      const { domain, map } = guest();
      domain.pv.suspend(registers);
      spoil(domain, map);
      expect(() => domain.pv.resume('restored')).toThrow(GuestError);
      expect(() => domain.pv.resume('restored')).toThrow(why);
    };
    const infoOf = (d: TestDomain, map: PvGuestMap): Uint8Array => d.memory.page(map.physmap[16]!);
    // Nobody turned the pfns of start_info into frames.
    broken(() => undefined, /xenstore ring/);
    broken((d, map) => {
      const info = infoOf(d, map);
      new DataView(info.buffer, info.byteOffset).setBigUint64(
        START_INFO[8].storeMfn,
        BigInt(map.physmap[18]!),
        true,
      );
    }, /xenstore ring/);
    broken((d, map) => d.memory.page(map.physmap[19]!).fill(0), /data page/);
    broken((d) => d.memory.page(cr3Of(d)).fill(0), /do not reach its data/);
    broken((d) => d.memory.page(toldLeavesTable(d)).fill(0), /page 0 of its p2m/);
  });

  /** The level 1 table that maps the linear p2m. */
  function toldLeavesTable(domain: TestDomain): number {
    return lookUp(domain.memory, cr3Of(domain), 8, 0xffff_c900_0000_0000n)!.tables[1]!;
  }
});

describe('what else a PV kernel does', () => {
  it('changes page tables only if it is told to', () => {
    const { domain, kernel } = guest({ changesPageTables: false });
    domain.dirty.clear();
    run(kernel, 50);
    // The kernel data page has its generator.
    expect([...domain.dirty]).toEqual([19]);
  });

  it('does the same from the same seed', () => {
    const images = [1, 2].map((seed) => {
      const domain = makeDomain({ seed });
      const kernel = kernelOf(domain, buildPv(domain));
      run(kernel, 200);
      domain.pv.suspend(undefined);
      return takeImage(domain, PAGES);
    });
    expectSameMemory(images[0]!, images[1]!);
  });

  it('changes its p2m, if told to, and counts the generation up, even in between', () => {
    const { domain, kernel } = guest({ changesP2m: true });
    const generation = (): number =>
      u32(domain.memory.page(domain.sharedInfoMfn), SHARED_INFO[8].p2mGeneration);
    const before = [...kernel.physmap];
    run(kernel, 100);
    expect(generation()).toBeGreaterThan(0);
    expect(generation() % 2).toBe(0);
    expect([...kernel.physmap]).not.toEqual(before);
    expectWhole(checkKernel(kernel));
    auditTypes(domain);
  });

  it.each([8, 4] as const)('gives memory back and takes it again, %i-byte words', (width) => {
    const { domain, map, kernel } = guest({ width });
    const count = (): number => {
      let n = 0;
      domain.memory.forEachOwned(domain.domid, () => n++);
      return n;
    };
    const before = count();
    const gone = domain.pv.balloon(10);
    expect(gone).toHaveLength(10);
    expect(count()).toBe(before - 10);
    expect(gone.map((pfn) => map.physmap[pfn])).toEqual(gone.map(() => 0));
    expect(gone.map((pfn) => toldP2m(domain, PAGES)[pfn])).toEqual(gone.map(() => -1));
    expectWhole(checkKernel(kernel));
    const back = domain.pv.balloon(-15);
    expect(back).toHaveLength(15);
    expect(count()).toBe(before + 5);
    expectWhole(checkKernel(kernel));
    auditTypes(domain);
    expect(u32(domain.memory.page(domain.sharedInfoMfn), SHARED_INFO[width].p2mGeneration)).toBe(4);
    const inFree = map.free.some((r) => back.some((pfn) => pfn >= r.first && pfn < r.first + r.count));
    expect(inFree).toBe(false);
  });
});
