import { existsSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { pageTableLevel, PageType } from '../../lib/abi/pages.js';
import { SHARED_INFO, START_INFO, VCPU_CONTEXT } from '../../lib/abi/pv.js';
import { setU32, u32, u64 } from '../../lib/bytes/le.js';
import { GuestError } from '../../lib/errors.js';
import {
  auditTypes,
  buildPv,
  cr3Of,
  long,
  lookUp,
  makeDomain,
  toldLeaves,
  type TestDomain,
} from './pv-helpers.js';
import { putImage, readCapture, takeImage, type PvImage } from './pv-image.js';

/** Where register r15, or ebp, holds the mark of the simulator's own kernel. */
const MARK = { 4: 536, 8: 520 } as const;

/** A guest of the simulator that does not look like one. */
function foreign(width: 4 | 8, p2m: 'linear' | 'tree'): { image: PvImage; domain: TestDomain } {
  const source = makeDomain();
  buildPv(source, { width, p2m, vcpus: 3, pages: 0x3000 });
  source.pv.suspend(undefined);
  const image = takeImage(source, 0x3000);
  setU32(image.vcpus.get(0)!.get('basic')!, MARK[width], 0);
  const domain = makeDomain({ seed: 40, domid: 5 });
  putImage(domain, image);
  return { image, domain };
}

/** pfns of pages that are not the same in both images. Page tables are compared with pfns in them. */
function differences(a: PvImage, b: PvImage): number[] {
  expect([...b.memory.keys()].sort()).toEqual([...a.memory.keys()].sort());
  return [...a.memory].flatMap(([pfn, page]) => {
    const other = b.memory.get(pfn)!;
    return other.type === page.type && Buffer.compare(page.bytes, other.bytes) === 0 ? [] : [pfn];
  });
}

describe.each([
  [8, 'linear'],
  [8, 'tree'],
  [4, 'linear'],
  [4, 'tree'],
] as const)('a guest of another kernel, %i-byte words, %s p2m', (width, p2m) => {
  it('is not run, and can be saved again', () => {
    const { image, domain } = foreign(width, p2m);
    expect(domain.pv.resume('restored')).toBeUndefined();
    domain.pv.suspend(undefined);
    const again = takeImage(domain, image.pages);
    expect(again.leaves).toEqual(image.leaves);
    expect(again.vcpus).toEqual(image.vcpus);
    // Only its p2m, and what start_info says of the new host.
    const own = new Set([...image.leaves, 16]);
    expect(differences(image, again).filter((pfn) => !own.has(pfn))).toEqual([]);
    auditTypes(domain);
  });

  it('gets its rings back if the suspend is cancelled', () => {
    const { domain } = foreign(width, p2m);
    const page = domain.memory.page(
      Number(long(domain.pv.vcpuState(0, 'basic'), VCPU_CONTEXT[width].rdx, width)),
    );
    const fields = START_INFO[width];
    const rings = (): number[] =>
      [fields.storeMfn, fields.consoleMfn].map((at) => Number(long(page, at, width)));
    const before = rings();
    for (let round = 0; round < 2; round++) {
      domain.pv.suspend(undefined);
      expect(rings()).toEqual([17, 18]);
      expect(domain.pv.resume('cancelled')).toBeUndefined();
      expect(rings()).toEqual(before);
    }
  });
});

describe('a guest of another kernel that cannot be saved', () => {
  const refused = (p2m: 'linear' | 'tree', spoil: (domain: TestDomain) => void, why: RegExp): void => {
    const { domain } = foreign(8, p2m);
    spoil(domain);
    expect(() => domain.pv.suspend(undefined)).toThrow(GuestError);
    expect(() => domain.pv.suspend(undefined)).toThrow(why);
  };
  const VADDR = 0xffff_c900_0000_0000n;

  it('says so', () => {
    refused('linear', (d) => {
      const context = d.pv.vcpuState(0, 'basic');
      setU32(context, VCPU_CONTEXT[8].rdx, 3);
      d.pv.setVcpuState(0, 'basic', context);
    }, /start_info/);
    refused('linear', (d) => {
      const found = lookUp(d.memory, cr3Of(d), 8, VADDR + 4096n)!;
      d.memory.page(found.tables[1]!).fill(0, 8, 16);
    }, /do not map page 1 of the p2m/);
    refused('linear', (d) => {
      const leaf = d.memory.page(lookUp(d.memory, cr3Of(d), 8, VADDR)!.frame);
      leaf.copyWithin(8 * 40, 8 * 41, 8 * 42);
    }, /wrong entry for pfn 0x28/);
    refused(
      'linear',
      (d) => d.memory.page(d.sharedInfoMfn).fill(0xff, SHARED_INFO[8].maxPfn, SHARED_INFO[8].maxPfn + 6),
      /tells 281474976710655 pfns/,
    );
    refused(
      'tree',
      (d) => d.memory.page(d.sharedInfoMfn).fill(0xff, SHARED_INFO[8].maxPfn, SHARED_INFO[8].maxPfn + 4),
      /tells 4294967295 pfns/,
    );
    refused('tree', (d) => {
      // The p2m's pages lie below the kernel's page tables; the second one is not to be known any more.
      d.memory.forEachOwned(d.domid, (mfn) => {
        const page = d.memory.page(mfn);
        if (d.memory.pfnOf(Number(u64(page, 0))) === 512 && u64(page, 0) < 0x1_0000_0000n) page.fill(0xff);
      });
    }, /page 1 of its p2m is not found/);
  }); // prettier-ignore
});

const root = path.resolve(import.meta.dirname, '../..');
const local = process.env['XEN_MIGRATION_STREAMS'] ?? path.resolve(root, '../shared/streams');
const file = path.join(local, 'pv.save.gz');
if (!existsSync(file))
  console.warn('skipped: pv.save (no pv.save.gz; XEN_MIGRATION_STREAMS names the folder)');

describe.skipIf(!existsSync(file))('a real 64-bit Linux guest, captured on Xen 4.17', () => {
  it('goes in and comes out the same', () => {
    const image = readCapture(file);
    const domain = makeDomain({ seed: 12, pages: 0xc000 });
    putImage(domain, image);
    // Real types: what Xen told of each frame is what the simulator finds by validating the same tables.
    const types = new Map<number, number>();
    domain.memory.forEachOwned(domain.domid, (mfn) =>
      types.set(domain.memory.pfnOf(mfn), domain.memory.typeOf(mfn)),
    );
    expect([...image.memory].filter(([pfn, { type }]) => types.get(pfn) !== type)).toEqual([]);
    auditTypes(domain);

    expect(domain.pv.resume('restored')).toBeUndefined();
    domain.pv.suspend(undefined);
    expect(toldLeaves(domain, image.pages)).toHaveLength(64);
    const again = takeImage(domain, image.pages);
    expect(again.leaves).toEqual(image.leaves);
    expect(again.vcpus).toEqual(image.vcpus);

    const start = Number(u64(image.vcpus.get(0)!.get('basic')!, VCPU_CONTEXT[8].rdx));
    const expected = [...image.leaves, start].sort((a, b) => a - b);
    expect(differences(image, again).sort((a, b) => a - b)).toEqual(expected);
    const before = image.memory.get(start)!.bytes.slice();
    const after = again.memory.get(start)!.bytes.slice();
    const fields = START_INFO[8];
    for (const page of [before, after]) {
      page.fill(0, fields.sharedInfo, fields.sharedInfo + 8);
      page.fill(0, fields.flags, fields.flags + 4);
      page.fill(0, fields.storeEvtchn, fields.storeEvtchn + 4);
      page.fill(0, fields.consoleEvtchn, fields.consoleEvtchn + 4);
    }
    expect(after).toEqual(before);
    const arch = SHARED_INFO[8];
    const cr3 = u64(again.sharedInfo, arch.p2mCr3);
    expect(cr3).toBe(BigInt(cr3Of(domain)) << 12n);
    expect(u64(again.sharedInfo, arch.p2mVaddr)).toBe(0xffff_c900_0000_0000n);
    expect(u32(again.sharedInfo, arch.p2mGeneration)).toBe(u32(image.sharedInfo, arch.p2mGeneration));
    const tables = [...image.memory.values()].filter(({ type }) => pageTableLevel(type) > 0);
    expect(tables.length).toBeGreaterThan(200);
    expect(tables.some(({ type }) => type === (PageType.L4TAB | PageType.PINNED))).toBe(true);
  });
});
