import { describe, expect, it } from 'vitest';
import { fppOf, frameToCr3, type GuestWidth } from '../../../lib/abi/pv.js';
import { u32, u64n } from '../../../lib/bytes/le.js';
import type { XenMigrationError } from '../../../lib/errors.js';
import { walkLinearP2m, type P2mFrames } from '../../../lib/save/p2m-linear.js';
import { walkTreeP2m } from '../../../lib/save/p2m-tree.js';
import { FakeWorld, layouts } from './fake.js';
import { start } from './run.js';

/** Frames of a machine with nothing in them but tables, for p2ms of more frames than anybody wants to allocate. */
class Tables {
  readonly world = new FakeWorld({ kind: 'pv', pv: { pages: 700 } });
  readonly maxMfn = this.world.pv!.maxMfn;
  mapped = 0;

  constructor() {
    const mapFrames = this.world.domain.mapFrames.bind(this.world.domain);
    this.world.domain.mapFrames = (gfns, access) => {
      this.mapped += gfns.length;
      return mapFrames(gfns, access);
    };
  }

  take(): number {
    return this.world.pv!.take();
  }

  /** A table with these frames from entry `from` on. */
  table(from: number, targets: readonly number[]): number {
    const mfn = this.take();
    targets.forEach((target, i) => this.world.pv!.setPte(mfn, from + i, target));
    return mfn;
  }

  async linear(
    width: GuestWidth,
    root: number,
    vaddr: bigint,
    maxPfn: number,
    limit: (maxPfn: number) => void = () => undefined,
  ): Promise<P2mFrames> {
    const frames = await walkLinearP2m(this.world.domain, width, this.maxMfn, maxPfn, limit, {
      cr3: frameToCr3(root, width),
      vaddr,
    });
    expect(this.world.openMappings).toBe(0);
    return frames;
  }
}

async function caught(promise: Promise<unknown>): Promise<XenMigrationError> {
  return promise.then(
    () => {
      throw new Error('did not fail');
    },
    (error: unknown) => error as XenMigrationError,
  );
}

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

/**
 * A 64-bit linear p2m whose last level-1 tables are `used` distinct ones and then `missing` times the same one, as
 * Linux builds it. `first` is the level-2 entry that the range begins with, `page` the first level-1 entry.
 */
function linear64(t: Tables, used: number, missing: number, first: number, page = 0): [number, bigint] {
  const leaf = t.take();
  const full = range(512).map(() => leaf);
  const tables = range(used).map(() => t.table(0, full));
  if (missing > 0) {
    const none = t.table(0, full);
    for (let i = 0; i < missing; i++) tables.push(none);
  }
  const level2 = [t.take(), t.take()] as const;
  tables.forEach((table, i) => {
    const entry = first + i;
    t.world.pv!.setPte(level2[entry < 512 ? 0 : 1], entry % 512, table);
  });
  const level3 = t.table(5, level2);
  const root = t.table(402, [level3]);
  const vaddr = 0xffff_c900_0000_0000n + (5n << 30n) + (BigInt(first) << 21n) + (BigInt(page) << 12n);
  return [root, vaddr];
}

/** pfns of one level-1 table of a 64-bit guest. */
const CHUNK = 512 * 512;

describe('the unused tail of a linear p2m', () => {
  it.each([
    // used, missing, first level-2 entry, first page, expected maxPfn
    ['none', 3, 0, 0, 0, 3 * CHUNK - 1],
    ['none, one chunk', 1, 0, 0, 0, CHUNK - 1],
    ['two', 3, 2, 0, 0, 3 * CHUNK - 1],
    ['many', 1, 90, 0, 0, CHUNK - 1],
    ['two, not at level-2 entry 0', 3, 2, 300, 0, 3 * CHUNK - 1],
    ['none, not at level-2 entry 0', 4, 0, 300, 0, 4 * CHUNK - 1],
    ['two, over the end of a level-2 table', 4, 6, 508, 0, 4 * CHUNK - 1],
    ['none, over the end of a level-2 table', 6, 0, 508, 0, 6 * CHUNK - 1],
    // Not at level-1 entry 0 either: the first chunk is shorter.
    ['two, not at level-1 entry 0', 3, 2, 7, 100, 3 * CHUNK - 100 * 512 - 1],
    ['none, not at level-1 entry 0', 3, 0, 7, 100, 3 * CHUNK - 100 * 512 - 1],
  ] as const)('%s', async (_name, used, missing, first, page, expected) => {
    const t = new Tables();
    const [root, vaddr] = linear64(t, used, missing, first, page);
    const claimed = (used + missing) * CHUNK - page * 512 - 1;
    const limits: number[] = [];
    const { maxPfn, leaves } = await t.linear(8, root, vaddr, claimed, (n) => limits.push(n));
    expect(maxPfn).toBe(expected);
    expect(leaves).toHaveLength((expected + 1) / 512);
    expect(limits).toEqual([expected]);
  });

  it('is only one if two entries or more are the same: a last chunk that is not full stays', async () => {
    const t = new Tables();
    const [root, vaddr] = linear64(t, 2, 1, 0);
    expect((await t.linear(8, root, vaddr, 3 * CHUNK - 1)).maxPfn).toBe(3 * CHUNK - 1);
  });

  it('never takes everything', async () => {
    const t = new Tables();
    const [root, vaddr] = linear64(t, 0, 4, 0);
    expect((await t.linear(8, root, vaddr, 4 * CHUNK - 1)).maxPfn).toBe(CHUNK - 1);
  });

  it('is not looked for above what the guest claims', async () => {
    const t = new Tables();
    const [root, vaddr] = linear64(t, 3, 5, 300);
    expect((await t.linear(8, root, vaddr, 2 * CHUNK + 5)).maxPfn).toBe(2 * CHUNK + 5);
  });

  it('of a 32-bit guest above 2 GiB whose list begins high in its address space', async () => {
    const t = new Tables();
    const leaf = t.take();
    const full = range(512).map(() => leaf);
    // 0xe0000000: level-2 entry 256 of the fourth table. One level-1 table is 512 · 1024 pfns: 2 GiB.
    const tables = range(3).map(() => t.table(0, full));
    const level2 = t.table(256, tables);
    const root = t.table(3, [level2]);
    const frames = await t.linear(4, root, 0xe000_0000n, 3 * 512 * 1024 - 1);
    expect(frames.maxPfn).toBe(3 * 512 * 1024 - 1);
    expect(frames.leaves).toHaveLength(1536);
  });
});

describe('a linear p2m that cannot be', () => {
  const good = (t: Tables): [number, bigint] => linear64(t, 2, 0, 0);
  const V = 0xffff_c900_0000_0000n;

  it.each<[string, GuestWidth, bigint, number]>([
    ['not canonical', 8, 0x0000_8000_0000_0000n, 10],
    ['in the hypervisor’s hole', 8, 0xffff_8500_0000_0000n, 10],
    ['reaching into the hole', 8, 0xffff_7fff_ffff_f000n, 10],
    ['running into the hole from below', 8, 0x0000_7fff_ffff_f000n, 1024],
    ['running over the end of the address space', 8, 0xffff_ffff_ffff_f000n, 1024],
    ['not at the start of a page', 8, V + 8n, 10],
    ['32-bit, above 4 GiB', 4, 0x1_0000_0000n, 10],
    ['32-bit, running over 4 GiB', 4, 0xffff_f000n, 2048],
    ['32-bit, in the hole', 4, 0xf580_0000n, 10],
    ['32-bit, reaching into the hole', 4, 0xf57f_f000n, 2048],
  ])('range %s', async (_name, width, vaddr, maxPfn) => {
    const t = new Tables();
    const [root] = good(t);
    expect(await caught(t.linear(width, root, vaddr, maxPfn))).toMatchObject({
      code: 'ERR_XEN_GUEST_P2M_INVALID',
      message: expect.stringContaining('bad virtual p2m address range') as string,
    });
    expect(t.mapped).toBe(0);
  });

  it('root out of the machine', async () => {
    const t = new Tables();
    const [, vaddr] = good(t);
    for (const root of [0, t.maxMfn + 1, 2 ** 40 - 1]) {
      expect(await caught(t.linear(8, root, vaddr, 10))).toMatchObject({
        code: 'ERR_XEN_GUEST_P2M_INVALID',
        message: expect.stringContaining('p2m_cr3: mfn') as string,
      });
    }
    expect(t.mapped).toBe(0);
  });

  it('root of somebody else', async () => {
    const t = new Tables();
    const [root, vaddr] = good(t);
    t.world.unmappable.add(root);
    expect(await caught(t.linear(8, root, vaddr, 10))).toMatchObject({
      message: `level-4 table of the p2m: mfn 0x${root.toString(16)} cannot be mapped (EINVAL)`,
    });
    expect(t.world.openMappings).toBe(0);
  });

  it('entries that lead nowhere, at each level', async () => {
    const where = [402, 5, 0, 3];
    for (let level = 4; level >= 1; level--) {
      for (const [problem, pte] of [
        ['is not present', [0x1000, 0]],
        ['mfn 0x0 is not in', [0x7, 0]],
        ['mfn 0xffffffffff is not in', [0xffff_f007, 0x000f_ffff]],
        ...(level > 1 ? [['maps a superpage', [0x1087, 0x10]]] : []),
      ] as [string, [number, number]][]) {
        const t = new Tables();
        const [root, vaddr] = good(t);
        const { words, pv } = t.world;
        let table = root;
        for (let l = 4; l > level; l--) {
          const at = pv!.at(table) + 2 * where[4 - l]!;
          table = words[at + 1]! * 0x10_0000 + (words[at]! >>> 12);
        }
        const at = pv!.at(table) + 2 * where[4 - level]!;
        [words[at], words[at + 1]] = pte;
        expect(await caught(t.linear(8, root, vaddr, CHUNK + 9)), `${level}: ${problem}`).toMatchObject({
          code: 'ERR_XEN_GUEST_P2M_INVALID',
          message: expect.stringMatching(
            new RegExp(
              `^entry ${where[4 - level]!} of level-${level} table of the p2m at mfn 0x[0-9a-f]+:? ${problem}`,
            ),
          ) as string,
        });
        expect(t.world.openMappings).toBe(0);
      }
    }
  });

  it('tables that name each other end like any others', async () => {
    const t = new Tables();
    const root = t.take();
    for (let i = 0; i < 512; i++) t.world.pv!.setPte(root, i, root);
    // Two level-2 entries with the same table: a tail, but for the first.
    const { leaves } = await t.linear(8, root, V, 600 * 512);
    expect(leaves).toHaveLength(512);
  });

  it('16 TiB of it, claimed for nothing, cost a few reads', async () => {
    const t = new Tables();
    const two = [t.take(), t.take()];
    // Every second entry another table, so that no tail is cut off.
    const level2 = t.table(
      0,
      range(512).map((i) => two[i % 2]!),
    );
    const level3 = t.table(
      0,
      range(512).map(() => level2),
    );
    const root = t.table(402, [level3]);
    const error = await caught(
      t.linear(8, root, V, 2 ** 32 - 1, (maxPfn) => {
        expect(maxPfn).toBe(2 ** 32 - 1);
        throw new Error('too much');
      }),
    );
    expect(error.message).toBe('too much');
    expect(t.mapped).toBe(2 + 32);
  });
});

describe('a p2m tree', () => {
  const walk = async (t: Tables, width: GuestWidth, root: number, maxPfn: number): Promise<P2mFrames> => {
    const frames = await walkTreeP2m(t.world.domain, width, t.maxMfn, maxPfn, () => undefined, root);
    expect(t.world.openMappings).toBe(0);
    return frames;
  };

  /** Frame list list of `lists` distinct frame lists and `same` times the last, all leading to one leaf. */
  const build = (t: Tables, lists: number, same: number): number => {
    const leaf = t.take();
    const pv = t.world.pv!;
    const root = t.take();
    let list = 0;
    for (let i = 0; i < lists + same; i++) {
      if (i < lists) {
        list = t.take();
        for (let k = 0; k < 512; k++) pv.setFrame(list, k, leaf);
      }
      pv.setFrame(root, i, list);
    }
    return root;
  };

  it.each([
    ['no tail', 3, 0, 3 * CHUNK - 1, 3 * CHUNK - 1],
    ['no tail, last list not full', 3, 0, 2 * CHUNK + 700, 2 * CHUNK + 700],
    ['a tail, of which one list stays', 3, 4, 7 * CHUNK - 1, 3 * CHUNK - 1],
    ['nothing but one list', 1, 6, 7 * CHUNK - 1, CHUNK - 1],
  ] as const)('%s', async (_name, lists, same, claimed, expected) => {
    const t = new Tables();
    const { maxPfn, leaves } = await walk(t, 8, build(t, lists, same), claimed);
    expect(maxPfn).toBe(expected);
    expect(leaves).toHaveLength(Math.floor(expected / 512) + 1);
  });

  it.each([
    ['root 0', (): number => 0, 10, 'pfn_to_mfn_frame_list_list: mfn 0x0 is not in'],
    ['root out of the machine', (t: Tables): number => t.maxMfn + 1, 10, 'pfn_to_mfn_frame_list_list: mfn'],
    [
      'more than a root can hold',
      (t: Tables): number => build(t, 1, 0),
      512 * CHUNK,
      '513 frame lists do not fit',
    ],
    [
      'a list that is none',
      (t: Tables): number => {
        const root = build(t, 2, 0);
        t.world.pv!.setFrame(root, 1, -1);
        return root;
      },
      2 * CHUNK - 1,
      'entry 1 of frame list list at mfn',
    ],
    [
      'a leaf that is none',
      (t: Tables): number => {
        const root = build(t, 1, 0);
        t.world.pv!.setFrame(t.world.words[t.world.pv!.at(root)]!, 7, 2 ** 40);
        return root;
      },
      8 * 512,
      'entry 7 of frame list at mfn',
    ],
  ] as const)('that cannot be: %s', async (_name, make, maxPfn, message) => {
    const t = new Tables();
    expect(await caught(walk(t, 8, make(t), maxPfn))).toMatchObject({
      code: 'ERR_XEN_GUEST_P2M_INVALID',
      message: expect.stringContaining(message) as string,
    });
    expect(t.world.openMappings).toBe(0);
  });

  it('of a 32-bit guest has entries of 32 bits', async () => {
    const world = new FakeWorld({ kind: 'pv', pv: { width: 4, p2m: 'tree', pages: 1500 } });
    const { result, sink } = start(world, { live: false });
    expect((await result).p2mSize).toBe(1500);
    expect(sink.ended).toBe(true);
  });
});

describe.each([4, 8] as const)('shared info that claims what cannot be (%d bytes)', (width) => {
  const { sharedInfo } = layouts(width);

  it.each([
    [0n, 'ERR_XEN_GUEST_P2M_INVALID'],
    [BigInt(80 * fppOf(width) + 1), 'ERR_XEN_GUEST_TOO_BIG'],
    // Does not fit in the address space of a 32-bit guest.
    [0xffff_ffffn, width === 8 ? 'ERR_XEN_GUEST_TOO_BIG' : 'ERR_XEN_GUEST_P2M_INVALID'],
    ...(width === 8
      ? ([
          [0x1_0000_0000n, 'ERR_XEN_GUEST_TOO_BIG'],
          [0x1_0000_0001n, 'ERR_XEN_GUEST_TOO_BIG'],
          [0xffff_ffff_ffff_ffffn, 'ERR_XEN_GUEST_TOO_BIG'],
        ] as const)
      : []),
  ] as const)('max_pfn %s', async (frames, code) => {
    const world = new FakeWorld({
      kind: 'pv',
      pv: { width, pages: 80, vaddr: width === 8 ? 0xffff_c900_0000_0000n : 0n },
    });
    const image = world.pv!;
    // All tables lead to themselves and the leaf, so that only the claim is wrong.
    const a = image.take();
    const b = image.take();
    for (let i = 0; i < 512; i++) {
      image.setPte(a, i, i % 2 === 0 ? a : b);
      image.setPte(b, i, i % 2 === 0 ? a : b);
    }
    image.setShared(sharedInfo.p2mCr3, frameToCr3(a, width));
    image.setShared(sharedInfo.maxPfn, frames);
    const { result, sink } = start(world);
    const error = await caught(result);
    expect(error).toMatchObject({ code, phase: 'setup', guest: { host: 'source', state: 'running' } });
    expect(sink.bytesWritten).toBe(0);
    expect(world.quiet).toMatchObject({ openMappings: 0, m2pOpen: false });
    // Never by the number of pages that were claimed.
    expect(world.calls.filter((call) => call === 'mapFrames').length).toBeLessThan(20);
  });
});

describe('the frames of the p2m', () => {
  it('must be the guest’s by M2P and p2m', async () => {
    const world = new FakeWorld({ kind: 'pv', pv: { pages: 600 } });
    const image = world.pv!;
    const leafPfn = image.m2p(image.leaves[1]!);
    image.setP2m(leafPfn, image.mfnOf[3]!);
    expect(await caught(start(world).result)).toMatchObject({
      code: 'ERR_XEN_GUEST_P2M_INVALID',
      message: `p2m frame 1: mfn 0x${image.leaves[1]!.toString(16)} is not in the guest's own p2m`,
    });
    expect(world.quiet).toMatchObject({ openMappings: 0, m2pOpen: false });
  });

  it('are all named, in order', async () => {
    const world = new FakeWorld({ kind: 'pv', pv: { pages: 1600 } });
    const { result, sink } = start(world, { live: false });
    await result;
    const bytes = sink.bytes;
    // Headers, PV_INFO, two policies, STATIC_DATA_END.
    const at = 40 + 16 + 56 + 24 + 8;
    expect([u32(bytes, at), u32(bytes, at + 4)]).toEqual([3, 8 + 4 * 8]);
    const pfns = range(4).map((i) => u64n(bytes, at + 16 + 8 * i));
    expect(pfns).toEqual(world.pv!.leaves.map((mfn) => world.pv!.m2p(mfn)));
  });

  it('cannot be mapped: shared info', async () => {
    const world = new FakeWorld({ kind: 'pv' });
    world.unmappable.add(world.pv!.sharedInfoMfn);
    expect(await caught(start(world).result)).toMatchObject({
      message: expect.stringContaining('shared info: mfn') as string,
      guest: { state: 'running' },
    });
    expect(world.m2pOpen).toBe(false);
  });
});
