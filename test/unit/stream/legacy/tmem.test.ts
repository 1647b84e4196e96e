/** tmem sections: what they say, what their writers left out, what is refused. */

import { describe, expect, it } from 'vitest';
import * as W from '../../../legacy/writer.js';
import { feed } from './feed.js';

type Event = Readonly<Record<string, unknown>>;

const { SHARED, PRECOMPRESSED } = W.TMEM_POOL;
const pages = [W.tmemPage(7, 0), W.tmemPage(7, 1), W.tmemPage(9, 44)] as const;

const image = (spec: W.TmemSpec, ...more: readonly W.Chunk[]): W.ImageSpec => ({
  guest: 'hvm',
  body: [W.tmem(spec), ...more, W.tsc(), W.pages(W.ram(2)), W.lastCheckpoint],
});

/** Events of tmem, page contents cut to their first bytes; and whether the rest of the image was read. */
function read(spec: W.ImageSpec): { parts: Event[]; error: string | undefined } {
  const seen = feed(W.legacyImage(spec));
  const parts = (seen.events as Event[])
    .filter(({ kind }) => kind === 'legacy-tmem')
    .map(({ kind: _k, layer: _l, offset: _o, ...rest }) => rest);
  if (seen.error === undefined) {
    expect(seen.done).toBe(true);
    expect((seen.events as Event[]).filter(({ kind }) => kind === 'page-data')).toMatchObject([
      { pfns: [2] },
    ]);
  }
  return { parts, error: seen.error };
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const oid = ({ object }: W.TmemPage): string[] => object.map((part) => `${part}n`);
const pageEvents = (poolId: number, list: readonly W.TmemPage[]): unknown[] =>
  list.map((page) => ({
    part: 'page',
    handle: { poolId, oid: oid(page), index: page.index },
    bytes: hex(page.contents),
  }));
const section = (more: object = {}): unknown => ({
  part: 'section',
  section: { version: 1, maxPools: 16, flags: 0, weight: 0, cap: 0, ...more },
});
const pool = (of: W.TmemPool, declared: number, pageSize = 4096): Event => ({
  poolId: of.id,
  flags: of.flags,
  persistent: (of.flags & 1) !== 0,
  shared: (of.flags & 2) !== 0,
  pageSize,
  pages: declared,
  uuid: [`${of.id + 1}n`, '43981n'],
});

describe('sections', () => {
  it('of a client without pools', () => {
    expect(read(image({ clientFlags: 3, weight: -2, cap: 5 }))).toEqual({
      parts: [section({ flags: 3, weight: 0xffff_fffe, cap: 5 }), { part: 'section-end', pools: 0 }],
      error: undefined,
    });
  });

  it('with pools of every kind', () => {
    const pools = [
      W.ephemeral(0, SHARED),
      W.persistent(1, pages),
      { ...W.persistent(2, pages.slice(1), PRECOMPRESSED), declared: 2 },
      { ...W.persistent(7, []), declared: 0 },
      W.persistent(15, [W.tmemPage(1, 2, 65_536)], 0, 4),
    ] as const;
    expect(read(image({ pools })).parts).toEqual([
      section(),
      { part: 'pool', pool: pool(pools[0], 0) },
      { part: 'pool', pool: pool(pools[1], 4) },
      ...pageEvents(1, pages),
      { part: 'pool-end', pool: pool(pools[1], 4), pages: 3, end: 'terminator' },
      { part: 'pool', pool: pool(pools[2], 2) },
      ...pageEvents(2, pages.slice(1)),
      { part: 'pool-end', pool: pool(pools[2], 2), pages: 2, end: 'count' },
      { part: 'pool', pool: pool(pools[3], 0) },
      { part: 'pool', pool: pool(pools[4], 2, 65_536) },
      ...pageEvents(15, [W.tmemPage(1, 2, 65_536)]),
      { part: 'pool-end', pool: pool(pools[4], 2, 65_536), pages: 1, end: 'terminator' },
      { part: 'section-end', pools: 5 },
    ]);
  });

  it('an object of swapped-out memory is no pool, whatever its device', () => {
    // frontswap: the object is the number of the swap device, then zeros.
    for (let device = 0; device < 32; device++) {
      const list = [0, 1, 2].map((index): W.TmemPage => {
        return { object: [BigInt(device), 0n, 0n], index, contents: W.seeded(4096, index) };
      });
      const of = W.persistent(0, list);
      expect(read(image({ pools: [of, W.ephemeral(9)] })).parts).toEqual([
        section(),
        { part: 'pool', pool: pool(of, 4) },
        ...pageEvents(0, list),
        { part: 'pool-end', pool: pool(of, 4), pages: 3, end: 'terminator' },
        { part: 'pool', pool: pool(W.ephemeral(9), 0) },
        { part: 'section-end', pools: 2 },
      ]);
    }
  });

  it('what was invalidated', () => {
    const gone = [
      { pool: 1, object: [7n, 1n, 2n], index: 4 },
      { pool: 15, object: [1n, 0n, 2n ** 64n - 1n], index: 0xffff_ffff },
    ] as const;
    const spec = image({ pools: [W.persistent(1, pages)] }, W.tmemExtra(gone), W.tmemExtra());
    expect(read(spec).parts.slice(-4)).toEqual([
      { part: 'flush', handle: { poolId: 1, oid: ['7n', '1n', '2n'], index: 4 } },
      { part: 'flush', handle: { poolId: 15, oid: ['1n', '0n', `${2n ** 64n - 1n}n`], index: 0xffff_ffff } },
      { part: 'flush-end', pages: 2 },
      { part: 'flush-end', pages: 0 },
    ]);
  });

  it('offsets', () => {
    const spec = image({ pools: [W.ephemeral(0), W.persistent(1, pages.slice(0, 1))] });
    const { events } = feed(W.legacyImage(spec));
    const offsets = (events as Event[])
      .filter(({ kind }) => kind === 'legacy-tmem')
      .map(({ part, offset }) => [part, offset]);
    const pools = 8 + 4 + 28;
    expect(offsets).toEqual([
      ['section', 8],
      ['pool', pools],
      ['pool', pools + 28],
      ['page', pools + 56],
      ['pool-end', pools + 56 + 28 + 4096 + 24],
      ['section-end', pools + 56 + 28 + 4096 + 24],
    ]);
  });
});

describe('pages that a writer has passed over without a mark', () => {
  const short = (declared: number): W.TmemPool => ({
    ...W.persistent(1, pages),
    declared,
    terminated: false,
  });

  it.each([
    ['an ephemeral pool follows', W.ephemeral(4)],
    ['a shared pool follows', W.ephemeral(2, SHARED)],
    ['a persistent pool follows', W.persistent(15, pages.slice(0, 1))],
    ['a pool of larger pages follows', W.persistent(3, [], 0, 4)],
  ])('%s', (_what, next) => {
    const { parts, error } = read(image({ pools: [short(9), next] }));
    expect(error).toBeUndefined();
    expect(parts.filter(({ part }) => part === 'page').length).toBe(3 + (next.pages?.length ?? 0));
    expect(parts.find(({ part }) => part === 'pool-end')).toMatchObject({
      pages: 3,
      end: 'missing terminator',
    });
    expect(parts.filter(({ part }) => part === 'pool')).toHaveLength(2);
    expect(parts.at(-1)).toEqual({ part: 'section-end', pools: 2 });
  });

  it.each([
    ['a chunk follows', W.tsc()],
    ['a batch follows', W.pages(W.ram(9, 1), W.holes(10, 40))],
  ])('the section ends, %s', (_what, next) => {
    const { events, error } = feed(
      W.legacyImage({ guest: 'hvm', body: [W.tmem({ pools: [short(9)] }), next] }),
    );
    expect(error).toBeUndefined();
    const parts = (events as Event[]).filter(({ kind }) => kind === 'legacy-tmem');
    expect(parts.slice(-2)).toMatchObject([
      { part: 'pool-end', pages: 3, end: 'missing terminator' },
      { part: 'section-end', pools: 1 },
    ]);
    expect((events as Event[]).some(({ kind }) => kind === 'legacy-tail')).toBe(true);
  });

  it('all of them', () => {
    const none: W.TmemPool = { ...W.persistent(1, []), declared: 5, terminated: false };
    const { parts } = read(image({ pools: [none, W.ephemeral(2)] }));
    expect(parts.find(({ part }) => part === 'pool-end')).toMatchObject({
      pages: 0,
      end: 'missing terminator',
    });
  });
});

describe('refused', () => {
  const pools = 8 + 4 + 28;
  const flags = W.poolFlags(1);

  it.each<[string, W.ImageSpec, string]>([
    ['version', image({ version: 2 }), 'VERSION TMEM.version @12'],
    ['more pools than there may be', image({ maxPools: 17 }), 'LIMIT TMEM.max_pools @16'],
    ['a pool beyond them', image({ pools: [W.ephemeral(16)] }), `FIELD TMEM.pool_id @${pools}`],
    ['a pool beyond fewer', image({ maxPools: 2, pools: [W.ephemeral(2)] }), `FIELD TMEM.pool_id @${pools}`],
    ['a pool twice', image({ pools: [W.ephemeral(3), W.ephemeral(3)] }), `FIELD TMEM.pool_id @${pools + 28}`],
    [
      'pools that descend',
      image({ pools: [W.ephemeral(3), W.ephemeral(1)] }),
      `FIELD TMEM.pool_id @${pools + 28}`,
    ],
    [
      'an ephemeral pool with pages',
      image({ pools: [{ ...W.ephemeral(1), declared: 1 }] }),
      `FIELD TMEM.n_pages @${pools + 8}`,
    ],
    [
      'pages of 128 KiB',
      image({ pools: [{ id: 1, flags: W.poolFlags(1, 5), declared: 0 }] }),
      `LIMIT TMEM.flags @${pools + 4}`,
    ],
    [
      'pool of TMEM_EXTRA',
      image({}, W.tmemExtra([{ pool: 16, object: [0n, 0n, 0n], index: 0 }])),
      `FIELD TMEM_EXTRA.pool_id @${pools + 8}`,
    ],
  ])('%s', (_what, spec, error) => {
    expect(feed(W.legacyImage(spec)).error).toBe(error);
    expect(feed(W.legacyImage(spec), { lenient: true }).error).toBe(error);
  });

  it.each([4, 20])('a mark of all ones that is something else (%d)', (at) => {
    const bytes = W.legacyImage(image({}));
    bytes[8 + 4 + 4 + at] = 0xfe;
    expect(feed(bytes).error).toMatch(/^MARKER TMEM\.mark @/);
  });

  it('a sender that failed leaves an image that ends', () => {
    const [piece] = W.tmem({ failedAt: 'weight' })(W.layoutOf({ guest: 'hvm' })) as [W.Piece];
    expect(feed(W.cat(W.w64(64), piece.bytes)).error).toMatch(/^TRUNCATED TMEM @/);
  });

  it('a number of pages that lies', () => {
    const of: W.TmemPool = { id: 1, flags, declared: 0xffff_ffff, pages, terminated: false };
    const bytes = W.legacyImage(image({ pools: [of] })).subarray(0, pools + 28 + 3 * (28 + 4096));
    const { error, done } = feed(bytes);
    expect(error).toMatch(/^TRUNCATED TMEM/);
    expect(done).toBe(false);
  });
});
