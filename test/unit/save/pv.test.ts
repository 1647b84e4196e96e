import { describe, expect, it } from 'vitest';
import { PageType } from '../../../lib/abi/pages.js';
import { frameToCr3, type GuestWidth } from '../../../lib/abi/pv.js';
import { setU32, setU64, u32, u64 } from '../../../lib/bytes/le.js';
import type { XenMigrationError } from '../../../lib/errors.js';
import { INVALID_FRAME } from '../../../lib/host/host.js';
import { normaliseVcpu } from '../../../lib/save/vcpus.js';
import { FakeWorld, layouts } from './fake.js';
import type { PvLayout } from './fake-pv.js';
import { received, runToEnd, start } from './run.js';

async function caught(promise: Promise<unknown>): Promise<XenMigrationError> {
  return promise.then(
    () => {
      throw new Error('did not fail');
    },
    (error: unknown) => error as XenMigrationError,
  );
}

const kinds: [GuestWidth, PvLayout['p2m']][] = [
  [8, 'linear'],
  [8, 'tree'],
  [4, 'linear'],
  [4, 'tree'],
];

describe.each(kinds)('a PV guest of %d bytes with a %s p2m', (width, p2m) => {
  it('is saved with pfns wherever it had mfns', async () => {
    const world = new FakeWorld({ kind: 'pv', vcpus: 2, pv: { width, p2m, pages: 60, holes: [9, 10] } });
    const image = world.pv!;
    const low = image.table(1, [image.mfnOf[6]!, image.mfnOf[7]!]);
    const high = image.table(2, [low], true);
    const { names, pages, records, result } = await runToEnd(world, { live: false });

    const vcpu = ['X86_PV_VCPU_BASIC', 'X86_PV_VCPU_EXTENDED', 'X86_PV_VCPU_XSAVE'];
    expect(names).toEqual([
      'image-header',
      'domain-header',
      ...['X86_PV_INFO', 'X86_CPUID_POLICY', 'X86_MSR_POLICY', 'STATIC_DATA_END', 'X86_PV_P2M_FRAMES'],
      'PAGE_DATA 60',
      ...['X86_TSC_INFO', 'SHARED_INFO', ...vcpu, ...vcpu, 'END'],
    ]);
    expect([...records.get('X86_PV_INFO')![0]!]).toEqual([width, width === 8 ? 4 : 3, 0, 0, 0, 0, 0, 0]);

    // The p2m's frames by pfn: their contents are in the image like any other page's.
    const frames = records.get('X86_PV_P2M_FRAMES')![0]!;
    expect(u32(frames, 0)).toBe(0);
    expect(u32(frames, 4)).toBe(59);
    expect(u64(frames, 8)).toBe(BigInt(image.m2p(image.leaves[0]!)));

    const { types } = pages[0]!;
    expect(types[9]).toBe(PageType.XTAB);
    const memory = received(pages);
    const lowPage = memory.get(image.m2p(low))!;
    expect(types[image.m2p(low)]).toBe(PageType.L1TAB);
    expect(u64(lowPage, 0)).toBe((6n << 12n) | 7n);
    expect(u64(lowPage, 8)).toBe((7n << 12n) | 7n);
    expect(types[image.m2p(high)]).toBe(PageType.L2TAB | PageType.PINNED);
    expect(u64(memory.get(image.m2p(high))!, 0)).toBe((BigInt(image.m2p(low)) << 12n) | 7n);
    // Other pages as they are.
    for (const pfn of [0, 1, 8, 11, 20]) {
      const at = image.at(image.mfnOf[pfn]!) * 4;
      expect(memory.get(pfn)!.equals(image.memory.subarray(at, at + 4096)), `pfn ${pfn}`).toBe(true);
    }
    expect(Object.keys(result.entriesByType)).toContain('L2TAB|PINNED');

    const sharedInfo = records.get('SHARED_INFO')![0]!;
    const shared = (image.sharedInfoMfn - image.baseMfn) * 4096;
    expect(Buffer.from(sharedInfo).equals(image.memory.subarray(shared, shared + 4096))).toBe(true);
    expect(world.quiet).toMatchObject({ openMappings: 0, m2pOpen: false });
  });

  it('goes with its vcpus that are online, frames as pfns', async () => {
    const world = new FakeWorld({ kind: 'pv', vcpus: 3, pv: { width, p2m } });
    world.offline.add(1);
    const { records } = await runToEnd(world, { live: false });
    const basic = records.get('X86_PV_VCPU_BASIC')!;
    expect(basic.map((b) => u32(b, 0))).toEqual([0, 2]);
    const { vcpu } = layouts(width);
    const read = (b: Uint8Array, at: number): bigint =>
      width === 8 ? u64(b, 8 + at) : BigInt(u32(b, 8 + at));
    expect(basic[0]).toHaveLength(8 + vcpu.size);
    expect(read(basic[0]!, vcpu.rdx)).toBe(1n);
    // Only vcpu 0 made the suspend hypercall.
    expect(read(basic[1]!, vcpu.rdx)).toBe(BigInt(world.pv!.mfnOf[1]!));
    for (const b of basic) {
      expect(read(b, vcpu.gdtFrames)).toBe(2n);
      expect(read(b, vcpu.gdtFrames + width)).toBe(3n);
      expect(read(b, vcpu.ctrlreg + 3 * width)).toBe(frameToCr3(4, width));
      if (width === 8) expect(u64(b, 8 + vcpu.ctrlreg + 8)).toBe(0x5001n);
    }
    expect(records.get('X86_PV_VCPU_MSRS')).toBeUndefined();
    expect(records.get('X86_PV_VCPU_EXTENDED')![1]).toEqual(
      Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0, ...new Uint8Array(64).fill(2)),
    );
  });

  it('keeps pages for the final pass that the running guest was about to change', async () => {
    const world = new FakeWorld({
      kind: 'pv',
      pv: { width, p2m, pages: 80, holes: [12] },
      dirty: [[1], [2]],
    });
    const image = world.pv!;
    const table = image.table(1, [0x99, image.mfnOf[7]!]);
    const pfn = image.m2p(table);
    world.before = (call) => {
      if (call === 'toolstack.suspend') image.setPte(table, 0, image.mfnOf[6]!);
    };
    const { pages } = await runToEnd(world);
    expect(pages[0]!.types[pfn]).toBe(PageType.XTAB);
    // Dirty, and the deferred ones: the table, and the frame that was not there and still is not.
    expect(pages.at(-1)!.pfns).toEqual([2, 12, pfn]);
    expect(pages.at(-1)!.types).toEqual([0, PageType.XTAB, PageType.L1TAB]);
    expect(u64(received(pages).get(pfn)!, 0)).toBe((6n << 12n) | 7n);
    // Its neighbours are not shifted by the gap.
    expect(u32(received(pages.slice(0, 1)).get(pfn - 1)!, 0)).toBe(0xa000_0000 + pfn - 1);
  });

  it('fails, and runs on, if a table of the suspended guest names a frame that is not its own', async () => {
    const world = new FakeWorld({ kind: 'pv', pv: { width, p2m, pages: 80 } });
    const table = world.pv!.table(1, [0x99]);
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_PAGE_TABLE',
      phase: 'stop-and-copy',
      message: expect.stringContaining(`pfn 0x${world.pv!.m2p(table).toString(16)}`) as string,
      guest: { host: 'source', state: 'running' },
    });
    expect(world.quiet).toMatchObject({ openMappings: 0, m2pOpen: false, logDirty: false });
  });

  it('fails at once on a superpage', async () => {
    const world = new FakeWorld({ kind: 'pv', pv: { width, p2m, pages: 80 } });
    const table = world.pv!.table(2, []);
    world.pv!.setPte(table, 5, world.pv!.mfnOf[6]!, 0x87);
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_SUPERPAGE',
      phase: 'pre-copy',
    });
  });

  it('sends a batch of many tables and pages together', async () => {
    const world = new FakeWorld({ kind: 'pv', pv: { width, p2m, pages: 600 } });
    const image = world.pv!;
    // Every second frame a table: hundreds of pieces.
    for (let pfn = 100; pfn < 500; pfn += 2) {
      const mfn = image.mfnOf[pfn]!;
      image.words.fill(0, image.at(mfn), image.at(mfn) + 1024);
      image.types[mfn - image.baseMfn] = PageType.L1TAB;
      image.setPte(mfn, 3, pfn === 200 ? 0x99 : image.mfnOf[pfn + 1]!);
    }
    world.before = (call) => {
      if (call === 'toolstack.suspend') image.setPte(image.mfnOf[200]!, 3, image.mfnOf[201]!);
    };
    const { pages, sink } = await runToEnd(world);
    expect(Math.max(...sink.writes.map((w) => w.length))).toBeLessThan(70);
    const first = received(pages.slice(0, 1));
    expect(first.get(200)).toBeUndefined();
    const memory = received(pages);
    for (let pfn = 100; pfn < 500; pfn += 2) {
      expect(u64(memory.get(pfn)!, 24), `pfn ${pfn}`).toBe((BigInt(pfn + 1) << 12n) | 7n);
      expect(u32(memory.get(pfn + 1)!, 4092), `pfn ${pfn + 1}`).toBe(0xa000_0001 + pfn);
      if (pfn !== 200) expect(u64(first.get(pfn)!, 24)).toBe((BigInt(pfn + 1) << 12n) | 7n);
    }
  });
});

describe('frames of kernels with marks in their p2m', () => {
  it('are XTAB and not asked for by number', async () => {
    const world = new FakeWorld({ kind: 'pv', pv: { pages: 60 } });
    const image = world.pv!;
    const leaf = image.at(image.leaves[0]!);
    // FOREIGN_FRAME, IDENTITY_FRAME
    image.words[leaf + 2 * 20 + 1] = 0x8000_0000;
    image.words[leaf + 2 * 21 + 1] = 0x4000_0000;
    const asked: number[] = [];
    const pageTypes = world.domain.pageTypes.bind(world.domain);
    world.domain.pageTypes = (gfns, types) => {
      asked.push(gfns[20]!, gfns[21]!);
      return pageTypes(gfns, types);
    };
    const { pages } = await runToEnd(world);
    expect(asked.slice(0, 2)).toEqual([INVALID_FRAME, INVALID_FRAME]);
    expect(pages[0]!.types.slice(19, 23)).toEqual([0, PageType.XTAB, PageType.XTAB, 0]);
    // No frame is about to come there: nothing for the final pass.
    expect(pages).toHaveLength(1);
  });
});

describe('a p2m that changes', () => {
  const linear = { kind: 'pv', pv: { pages: 80 }, dirty: [Array.from({ length: 60 }, (_, i) => i)] } as const;

  it('is noticed by its generation after a pass', async () => {
    const world = new FakeWorld(linear);
    world.before = (call) => {
      if (call === 'logDirty clean') world.pv!.setShared(layouts(8).sharedInfo.p2mGeneration, 6);
    };
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_P2M_CHANGED',
      phase: 'pre-copy',
      guest: { state: 'running' },
    });
    expect(world.calls).not.toContain('toolstack.suspend');
  });

  it('is noticed at the very last', async () => {
    const world = new FakeWorld(linear);
    world.before = (call) => {
      if (call === 'toolstack.suspend') world.pv!.setShared(layouts(8).sharedInfo.p2mGeneration, 6);
    };
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_P2M_CHANGED',
      phase: 'stop-and-copy',
      guest: { state: 'running' },
    });
  });

  it('before a guest that is not saved live stands still harms nothing: its p2m is followed after that', async () => {
    const world = new FakeWorld(linear);
    world.before = (call) => {
      if (call === 'toolstack.suspend') world.pv!.setShared(layouts(8).sharedInfo.p2mGeneration, 6);
    };
    await runToEnd(world, { live: false });
    expect(world.calls.indexOf('toolstack.suspend')).toBeLessThan(world.calls.indexOf('mapFrames'));
  });

  it('at the beginning is followed once more', async () => {
    const world = new FakeWorld(linear);
    const { p2mGeneration } = layouts(8).sharedInfo;
    let maps = 0;
    world.before = (call) => {
      if (call !== 'mapFrames') return;
      maps++;
      // The third mapping is in the middle of the first walk; an odd number says that it goes on.
      if (maps === 3) world.pv!.setShared(p2mGeneration, 5);
      if (maps === 3) setTimeout(() => world.pv!.setShared(p2mGeneration, 6), 12);
    };
    await runToEnd(world);
    expect(world.quiet).toMatchObject({ openMappings: 0 });
  });

  it('without end is no guest for a save', async () => {
    const world = new FakeWorld(linear);
    world.pv!.setShared(layouts(8).sharedInfo.p2mGeneration, 5);
    const { result, sink } = start(world);
    expect(await caught(result)).toMatchObject({ code: 'ERR_XEN_GUEST_P2M_CHANGED', phase: 'setup' });
    expect(sink.bytesWritten).toBe(0);
    expect(world.quiet).toMatchObject({ openMappings: 0, m2pOpen: false });
  });

  it('of a tree is noticed once the guest stands still', async () => {
    const world = new FakeWorld({ ...linear, pv: { pages: 80, p2m: 'tree' } });
    const image = world.pv!;
    world.before = (call) => {
      if (call !== 'toolstack.suspend') return;
      const copy = image.take();
      image.words.copyWithin(image.at(copy), image.at(image.leaves[0]!), image.at(image.leaves[0]!) + 1024);
      const list = image.words[image.at(rootOf(world))]!;
      image.setFrame(list, 0, copy);
    };
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_P2M_CHANGED',
      message: expect.stringContaining('its frames') as string,
      guest: { state: 'running' },
    });
  });

  it('of the other kind is another p2m', async () => {
    const world = new FakeWorld(linear);
    world.before = (call) => {
      if (call === 'logDirty clean') world.pv!.setShared(layouts(8).sharedInfo.p2mCr3, 0);
    };
    expect(await caught(start(world).result)).toMatchObject({ code: 'ERR_XEN_GUEST_P2M_CHANGED' });
  });
});

function rootOf(world: FakeWorld): number {
  const image = world.pv!;
  const shared = (image.sharedInfoMfn - image.baseMfn) * 4096;
  return u32(image.memory, shared + layouts(image.width).sharedInfo.frameListList);
}

describe('registers that cannot be', () => {
  const pfnOf = (mfn: number): number => (mfn >= 0x100 && mfn < 0x200 ? mfn - 0x100 : INVALID_FRAME);

  const context = (
    width: GuestWidth,
    change: (set: (at: number, value: bigint) => void) => void,
  ): Uint8Array => {
    const { vcpu } = layouts(width);
    const bytes = new Uint8Array(vcpu.size);
    const set = (at: number, value: bigint): void => {
      if (width === 8) setU64(bytes, at, value);
      else setU32(bytes, at, Number(value));
    };
    set(vcpu.rdx, 0x101n);
    set(vcpu.ctrlreg + 3 * width, frameToCr3(0x102, width));
    change(set);
    return bytes;
  };

  it.each([4, 8] as const)('are taken apart (%d bytes)', (width) => {
    const { vcpu } = layouts(width);
    const cases: [string, (set: (at: number, value: bigint) => void) => void][] = [
      [`user_regs.${width === 8 ? 'r' : 'e'}dx: mfn 0x300`, (set) => set(vcpu.rdx, 0x300n)],
      ['ctrlreg[3]: mfn 0x301', (set) => set(vcpu.ctrlreg + 3 * width, frameToCr3(0x301, width))],
      ['gdt_ents is 7169', (set) => set(vcpu.gdtEnts, 7169n)],
      ['gdt_ents is 4294967295', (set) => set(vcpu.gdtEnts, 0xffff_ffffn)],
      ['gdt_frames[0]: mfn 0x0', (set) => set(vcpu.gdtEnts, 1n)],
      [
        'gdt_frames[13]: mfn 0x99',
        (set) => {
          set(vcpu.gdtEnts, 7168n);
          for (let i = 0; i < 13; i++) set(vcpu.gdtFrames + i * width, 0x110n);
          set(vcpu.gdtFrames + 13 * width, 0x99n);
        },
      ],
    ];
    if (width === 8) {
      cases.push(['ctrlreg[1]: mfn 0x302', (set) => set(vcpu.ctrlreg + 8, 0x302_000n)]);
      cases.push(['user_regs.rdx: mfn', (set) => set(vcpu.rdx, 0xffff_ffff_ffff_ffffn)]);
    }
    for (const [message, change] of cases) {
      const bytes = context(width, change);
      const before = bytes.slice();
      expect(() => normaliseVcpu(bytes, 0, width, pfnOf), message).toThrow(
        expect.objectContaining({
          code: 'ERR_XEN_GUEST_VCPU_STATE',
          message: expect.stringContaining(`vcpu 0: ${message}`) as string,
        }) as Error,
      );
      expect(bytes).toEqual(before);
    }
    expect(() => normaliseVcpu(new Uint8Array(100), 3, width, pfnOf)).toThrow(`vcpu 3: context of 100 bytes`);
    // A vcpu other than 0 has anything in rdx, and a kernel without user tables 0 in ctrlreg[1].
    const other = context(width, (set) => set(vcpu.rdx, 0x300n));
    const copy = normaliseVcpu(other, 1, width, pfnOf);
    expect(u32(copy, vcpu.rdx)).toBe(0x300);
    expect(u32(copy, vcpu.ctrlreg + width)).toBe(0);
  });

  it('fail a save, and the guest runs on', async () => {
    const world = new FakeWorld({ kind: 'pv' });
    world.vcpuState = () => new Uint8Array(layouts(8).vcpu.size);
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_VCPU_STATE',
      phase: 'state',
      guest: { host: 'source', state: 'running' },
    });
  });
});
