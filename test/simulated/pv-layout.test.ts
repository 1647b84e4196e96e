import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { pageTableLevel } from '../../lib/abi/pages.js';
import { XEN_HOLE } from '../../lib/abi/pv.js';
import { UsageError } from '../../lib/errors.js';
import { slotOf, vaddrOf, vpnOf } from '../../lib/host/simulated/pv-frames.js';
import {
  kernelRanges,
  layoutOf,
  MAX_PV_PAGES,
  p2mVaddr,
  type PvShape,
} from '../../lib/host/simulated/pv-layout.js';
import { auditTypes, buildPv, checkKernel, expectWhole, kernelOf, makeDomain } from './pv-helpers.js';

const shapes = (most: number): fc.Arbitrary<PvShape> =>
  fc.record({
    width: fc.constantFrom(4 as const, 8 as const),
    pages: fc.integer({ min: 1024, max: most }),
    vcpus: fc.integer({ min: 1, max: 4 }),
    p2m: fc.constantFrom('linear' as const, 'tree' as const),
    unalignedP2m: fc.boolean(),
    p2mTail: fc.integer({ min: 0, max: 16 }),
    seed: fc.nat(),
  });

describe('the layout of a PV guest', () => {
  it('puts nothing over another thing', () => {
    fc.assert(
      fc.property(shapes(MAX_PV_PAGES[4]), (shape) => {
        const layout = layoutOf(shape);
        const { ramMap, gdt, processes, balloon, leaves, lists, tables, pages, holes } = layout;
        const singles = [layout.startInfo, layout.store, layout.console, layout.data];
        const areas = [ramMap, gdt, processes, balloon, leaves, lists, tables].filter((r) => r.count > 0);
        // The balloon area holds the last hole.
        const all = [...areas, ...singles.map((first) => ({ first, count: 1 })), ...holes.slice(0, -1)];
        all.sort((a, b) => a.first - b.first);
        all.forEach((range, i) => {
          expect(range.first + range.count).toBeLessThanOrEqual(all[i + 1]?.first ?? pages);
        });
        const kernel = kernelRanges(layout);
        const inKernel = (pfn: number): boolean =>
          kernel.some((r) => pfn >= r.first && pfn < r.first + r.count);
        for (const { first, count } of areas)
          expect(inKernel(first) && inKernel(first + count - 1)).toBe(true);
        for (const { first, count } of holes.slice(0, -1)) {
          expect(inKernel(first) || inKernel(first + count - 1)).toBe(false);
        }
        expect(layout.p2mEntries).toBeGreaterThanOrEqual(pages);
        if (shape.p2m === 'linear') {
          const end = p2mVaddr(shape) + BigInt(layout.p2mMapped) * 4096n;
          const [hole, last] = XEN_HOLE[shape.width];
          expect(end <= hole || p2mVaddr(shape) > last).toBe(true);
          expect(layout.p2mVpn + layout.p2mMapped <= layout.dataVpn).toBe(true);
        }
      }),
      { numRuns: 300 },
    );
  });

  it('is what a whole guest is built by', () => {
    fc.assert(
      fc.property(shapes(9000), (shape) => {
        const domain = makeDomain({ pages: 10_000 });
        const { p2mTail, unalignedP2m, seed, width, pages, vcpus, p2m } = shape;
        const map = buildPv(domain, { p2mTail, unalignedP2m, seed, width, pages, vcpus, p2m });
        const kernel = kernelOf(domain, map);
        expectWhole(checkKernel(kernel));
        auditTypes(domain);
        const { first, count } = kernel.layout.tables;
        // All pages set aside for tables became tables: the count is right, not just enough.
        for (let pfn = first; pfn < first + count; pfn++) {
          expect(pageTableLevel(domain.memory.typeOf(map.physmap[pfn]!))).toBeGreaterThan(0);
        }
      }),
      { numRuns: 12 },
    );
  });

  it('has limits', () => {
    const shape = { vcpus: 1, p2m: 'linear', unalignedP2m: false, p2mTail: 0, seed: 1 } as const;
    for (const [width, pages] of [
      [8, 1023],
      [8, 0x800_0001],
      [4, 0x100_0001],
      [8, 2000.5],
      [8, NaN],
    ] as const) {
      expect(() => layoutOf({ ...shape, width, pages })).toThrow(UsageError);
    }
    expect(layoutOf({ ...shape, width: 8, pages: 0x800_0000 }).pages).toBe(0x800_0000);
  });
});

describe('page numbers', () => {
  it('stand for addresses', () => {
    for (const [vaddr, width] of [
      [0xffff_8880_0000_0000n, 8],
      [0x7fff_ffff_f000n, 8],
      [0n, 8],
      [0xf57f_f000n, 4],
    ] as const) {
      expect(vaddrOf(vpnOf(vaddr, width), width)).toBe(vaddr);
    }
    expect([1, 2, 3, 4].map((level) => slotOf(vpnOf(0xffff_8880_4060_7000n, 8), level))).toEqual([
      7, 3, 1, 273,
    ]);
  });
});
