/**
 * The tmem sections of a legacy image (xc_tmem.c of Xen 4.0 to 4.12), chunks −5 and −6. docs/design/tmem.md says what is
 * done with them.
 *
 *     chunk −5
 *     offset  size  field
 *          0     4  version      1
 *          4     4  max_pools    16
 *          8     4  all ones
 *         12     4  flags        1 compress, 2 frozen
 *         16     4  weight
 *         20     4  cap
 *         24     4  all ones
 *     then for each pool
 *          0     4  pool_id      ascending; all ones: there are no more
 *          4     4  flags        1 persistent, 2 shared, 4 precompressed; bits 4–7 page size 4096 << n; 24–31 version
 *          8     4  n_pages      0 for pools that are not persistent
 *         12    16  uuid
 *     and for each of its pages, n_pages at most
 *          0    24  oid          all ones: no more pages
 *         24     4  index
 *         28     n  the page
 *
 *     chunk −6, once for each page that was invalidated meanwhile
 *          0     4  pool_id      all ones: no more
 *          4    24  oid
 *         28     4  index
 *
 * Writers left pages out without a mark, so that fewer than n_pages may come without the all-ones oid. What stands there
 * then is the next pool or the end. An oid of swapped-out memory is a small number (the swap device) followed by zeros,
 * which neither looks like: a pool's flags hold its version, 1, in the top byte, where that oid has zeros.
 */

import { setU64, u32, u64 } from '../../bytes/le.js';
import { uuidText } from '../../bytes/uuid.js';
import { StreamErrorCode } from '../codes.js';
import {
  LEGACY_BATCH_MAX,
  LegacyChunk,
  TMEM_PAGE_SIZE_MAX,
  TMEM_POOLS_MAX,
  TMEM_VERSION,
  TmemPoolFlag,
} from './constants.js';
import type { LegacyTmemEvent, TmemHandle, TmemPool, TmemPoolEnd } from './events.js';
import type { LegacyParser, Parsing } from './parser.js';

const ALL_ONES = 0xffff_ffff;
const HEAD_SIZE = 28;
const POOL_SIZE = 24;
const OID_SIZE = 24;
/** Bits of a pool's flags that mean something: the three, the page size, the version. */
const POOL_FLAGS = 0xff00_00f7;

type TmemPart<Part extends LegacyTmemEvent['part']> = Omit<
  Extract<LegacyTmemEvent, { part: Part }>,
  'kind' | 'layer' | 'offset'
>;

function* give<Part extends LegacyTmemEvent['part']>(offset: number, event: TmemPart<Part>): Parsing {
  const whole = { kind: 'legacy-tmem', layer: 'legacy', offset, ...event } as unknown as LegacyTmemEvent;
  yield { kind: 'event', event: whole };
}

/** Chunk −5, after its id. */
export function* parseTmem(parser: LegacyParser): Parsing {
  const start = parser.offset - 4;
  const head = yield* parser.bytes(HEAD_SIZE);
  const version = u32(head, 0);
  const maxPools = u32(head, 4);
  if (version !== TMEM_VERSION) {
    throw parser.error(StreamErrorCode.VERSION, `tmem version ${version} is not 1`, 'version', HEAD_SIZE);
  }
  parser.limit(maxPools, TMEM_POOLS_MAX, 'max_pools', HEAD_SIZE - 4);
  if (u32(head, 8) !== ALL_ONES || u32(head, 24) !== ALL_ONES) {
    throw parser.error(StreamErrorCode.MARKER, 'a mark of tmem is missing', 'mark', HEAD_SIZE - 8);
  }
  const section = { version, maxPools, flags: u32(head, 12), weight: u32(head, 16), cap: u32(head, 20) };
  yield* give<'section'>(start, { part: 'section', section });
  let pools = 0;
  for (let last = -1; ; pools++) {
    const offset = parser.offset;
    const poolId = u32(yield* parser.bytes(4), 0);
    if (poolId === ALL_ONES) {
      yield* give<'section-end'>(offset, { part: 'section-end', pools });
      return;
    }
    if (poolId >= maxPools || poolId <= last) {
      const reason = `pool ${poolId} after pool ${last}, of ${maxPools}`;
      throw parser.error(StreamErrorCode.FIELD, reason, 'pool_id', 4);
    }
    last = poolId;
    const pool = decodePool(poolId, yield* parser.bytes(POOL_SIZE));
    if (pool.pageSize > TMEM_PAGE_SIZE_MAX) {
      throw parser.error(StreamErrorCode.LIMIT, `pages of ${pool.pageSize} bytes`, 'flags', POOL_SIZE);
    }
    if (!pool.persistent && pool.pages !== 0) {
      const reason = `pool ${poolId} is ephemeral and has ${pool.pages} pages`;
      throw parser.error(StreamErrorCode.FIELD, reason, 'n_pages', POOL_SIZE - 4);
    }
    yield* give<'pool'>(offset, { part: 'pool', pool });
    if (pool.pages > 0) yield* parsePages(parser, pool);
  }
}

function decodePool(poolId: number, bytes: Uint8Array): TmemPool {
  const flags = u32(bytes, 0);
  return {
    poolId,
    flags,
    persistent: (flags & TmemPoolFlag.PERSISTENT) !== 0,
    shared: (flags & TmemPoolFlag.SHARED) !== 0,
    pageSize: 4096 * 2 ** ((flags >>> 4) & 0xf),
    pages: u32(bytes, 4),
    uuid: [u64(bytes, 8), u64(bytes, 16)],
  };
}

function* parsePages(parser: LegacyParser, pool: TmemPool): Parsing {
  const { poolId, pageSize } = pool;
  let end: TmemPoolEnd = 'count';
  let pages = 0;
  for (; pages < pool.pages; pages++) {
    const offset = parser.offset;
    const oid = (yield* parser.bytes(OID_SIZE)).slice();
    if (oid.every((byte) => byte === 0xff)) {
      end = 'terminator';
      break;
    }
    if (isPool(oid, poolId) || isEnd(oid)) {
      yield* parser.back(oid);
      end = 'missing terminator';
      break;
    }
    const index = u32(yield* parser.bytes(4), 0);
    const bytes = (yield* parser.bytes(pageSize)).slice();
    yield* give<'page'>(offset, { part: 'page', handle: handleOf(poolId, oid, 0, index), bytes });
  }
  yield* give<'pool-end'>(parser.offset, { part: 'pool-end', pool, pages, end });
}

/** The head of a pool after `poolId`, where an oid should be. */
function isPool(bytes: Uint8Array, poolId: number): boolean {
  const next = u32(bytes, 0);
  const flags = u32(bytes, 4);
  return next > poolId && next < TMEM_POOLS_MAX && flags >>> 24 === 1 && (flags & ~POOL_FLAGS) === 0;
}

/** The end of the section, and a chunk after it. */
function isEnd(bytes: Uint8Array): boolean {
  if (u32(bytes, 0) !== ALL_ONES) return false;
  const id = u32(bytes, 4) | 0;
  return id >= LegacyChunk.HVM_X87_FIP_WIDTH && id <= LEGACY_BATCH_MAX;
}

function handleOf(poolId: number, bytes: Uint8Array, at: number, index: number): TmemHandle {
  return { poolId, oid: [u64(bytes, at), u64(bytes, at + 8), u64(bytes, at + 16)], index };
}

/** Chunk −6, after its id. */
export function* parseTmemExtra(parser: LegacyParser): Parsing {
  for (let pages = 0; ; pages++) {
    const offset = parser.offset;
    const poolId = u32(yield* parser.bytes(4), 0);
    if (poolId === ALL_ONES) {
      yield* give<'flush-end'>(offset, { part: 'flush-end', pages });
      return;
    }
    if (poolId >= TMEM_POOLS_MAX) {
      throw parser.error(StreamErrorCode.FIELD, `pool ${poolId} of ${TMEM_POOLS_MAX}`, 'pool_id', 4);
    }
    const rest = yield* parser.bytes(OID_SIZE + 4);
    const handle = handleOf(poolId, rest, 0, u32(rest, OID_SIZE));
    yield* give<'flush'>(offset, { part: 'flush', handle });
  }
}

/** A pool's UUID as text: its 16 bytes in their order in the image, which is that of the file system whose cache it was. */
export function tmemPoolUuid({ uuid }: TmemPool): string {
  const bytes = new Uint8Array(16);
  setU64(bytes, 0, uuid[0]);
  setU64(bytes, 8, uuid[1]);
  return uuidText(bytes);
}
