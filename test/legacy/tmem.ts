/**
 * Sections of transcendent memory (tmem), for tests: pages that the guest had given to Xen. Xen up to 4.12 wrote them
 * for guests that had at least one pool.
 *
 *     chunk −5   u32 version, u32 pools at most, u32 all ones, u32 client flags, u32 weight, u32 cap, u32 all ones;
 *                then pools; u32 all ones in place of a pool's id
 *     pool       u32 id, u32 flags, u32 pages at most, u64[2] uuid; then pages
 *     page       u64[3] object, u32 index, contents; an object of all ones (without index) ends the pool's pages early
 *     chunk −6   u32 pool, u64[3] object, u32 index for each page that is gone since; u32 all ones
 */

import { cat, seeded, w32, w64, type Piece } from './bytes.js';
import { ChunkId, type Chunk } from './chunks.js';

export const TMEM_CLIENT = { COMPRESS: 1, FROZEN: 2 } as const;
export const TMEM_POOL = { PERSISTENT: 1, SHARED: 2, PRECOMPRESSED: 4 } as const;

const ONES = w32(-1);

export interface TmemPage {
  readonly object: readonly [bigint, bigint, bigint];
  readonly index: number;
  readonly contents: Uint8Array;
}

/** A page of a pool, with contents of its own. */
export function tmemPage(object: number, index: number, size = 4096): TmemPage {
  const contents = seeded(size, 0x7000 + object * 1024 + index);
  return { object: [BigInt(object), 0x55n, 0n], index, contents };
}

export interface TmemPool {
  readonly id: number;
  readonly flags: number;
  readonly uuid?: readonly [bigint, bigint];
  readonly pages?: readonly TmemPage[];
  /**
   * What the pool says it has at most. Default: 0 for an ephemeral pool; for a persistent one a page more than come,
   * since Xen passes over the first page of each pool.
   */
  readonly declared?: number;
  /** Whether the pages end with an object of all ones. Default: if fewer come than declared. */
  readonly terminated?: boolean;
}

/** Flags of a pool: bits 0–2, page size (4096 << order) in bits 4–7, version in bits 24–31. */
export function poolFlags(flags = 0, order = 0, version = 1): number {
  return (flags | (order << 4) | (version << 24)) >>> 0;
}

/** A pool whose pages Xen may drop at any time (cleancache): it has none here. */
export function ephemeral(id: number, flags = 0): TmemPool {
  return { id, flags: poolFlags(flags) };
}

/** A pool of swapped-out pages (frontswap). */
export function persistent(id: number, pages: readonly TmemPage[], flags = 0, order = 0): TmemPool {
  return { id, flags: poolFlags(TMEM_POOL.PERSISTENT | flags, order), pages };
}

export interface TmemSpec {
  readonly version?: number;
  readonly maxPools?: number;
  readonly clientFlags?: number;
  readonly weight?: number;
  readonly cap?: number;
  readonly pools?: readonly TmemPool[];
  /** The sender could not ask for this, wrote −1 and stopped: nothing follows it. */
  readonly failedAt?: 'version' | 'maxPools' | 'clientFlags' | 'weight' | 'cap';
}

function pool(of: TmemPool): Piece[] {
  const { id, flags, uuid = [BigInt(id) + 1n, 0xabcdn], pages = [] } = of;
  const { declared = (flags & TMEM_POOL.PERSISTENT) === 0 ? 0 : pages.length + 1 } = of;
  const { terminated = pages.length < declared } = of;
  const name = `tmem pool ${id}`;
  return [
    { name, bytes: cat(w32(id), w32(flags), w32(declared), ...uuid.map((half) => w64(half))) },
    ...pages.flatMap(({ object, index, contents }): Piece[] => [
      { name: `${name}: page`, bytes: cat(...object.map((part) => w64(part)), w32(index)) },
      { name: `${name}: contents`, bytes: contents, opaque: true },
    ]),
    ...(terminated ? [{ name: `${name}: end`, bytes: new Uint8Array(24).fill(0xff) }] : []),
  ];
}

/** Chunk −5. */
export function tmem(spec: TmemSpec = {}): Chunk {
  const { version = 1, maxPools = 16, clientFlags = 0, weight = 0, cap = 0, pools = [], failedAt } = spec;
  const fields = [
    ['version', version],
    ['maxPools', maxPools],
    ['ones', 0xffff_ffff],
    ['clientFlags', clientFlags],
    ['weight', weight],
    ['cap', cap],
    ['ones', 0xffff_ffff],
  ] as const;
  const failed = fields.findIndex(([name]) => name === failedAt);
  const head = failed < 0 ? fields.map(([, v]) => v) : [...fields.slice(0, failed).map(([, v]) => v), -1];
  const pieces: Piece[] = [
    { name: 'TMEM', bytes: cat(w32(ChunkId.TMEM), ...head.map((value) => w32(value))) },
  ];
  if (failed >= 0) return () => pieces;
  return () => [...pieces, ...pools.flatMap(pool), { name: 'TMEM: end', bytes: ONES }];
}

/** A page that the guest has taken out of a pool since chunk −5. */
export interface TmemGone {
  readonly pool: number;
  readonly object: readonly [bigint, bigint, bigint];
  readonly index: number;
}

/** Chunk −6. */
export function tmemExtra(gone: readonly TmemGone[] = []): Chunk {
  const list = gone.map(({ pool: id, object, index }) =>
    cat(w32(id), ...object.map((part) => w64(part)), w32(index)),
  );
  return () => [{ name: 'TMEM_EXTRA', bytes: cat(w32(ChunkId.TMEM_EXTRA), ...list, ONES) }];
}
