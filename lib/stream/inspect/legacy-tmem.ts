/** What the tmem sections of a legacy image have in them. */

import { tmemPoolUuid } from '../legacy/tmem.js';
import type { LegacyTmemEvent, TmemPool } from '../legacy/events.js';
import { LegacyChunk, legacyChunkName, TmemClientFlag, TmemPoolFlag } from '../legacy/constants.js';
import type { Inspection, TmemFacts, TmemPoolRow } from './report.js';

type Writable<T> = { -readonly [K in keyof T]: T[K] };

/** Sections that are told pool by pool: each has 16 pools at most. */
const POOLS_MAX = 1024;

const POOL_HEAD_SIZE = 28;
const PAGE_HEAD_SIZE = 28;
const HANDLE_SIZE = 32;

const plural = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`;

/** A row of the table of records. */
export interface TmemRow {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
  readonly about: string;
}

/** Collects tmem sections. */
export class TmemInspection {
  #facts: Writable<TmemFacts> | undefined;
  readonly #pools: TmemPoolRow[] = [];
  #pool: { readonly row: Writable<TmemPoolRow>; readonly offset: number } | undefined;
  #extraOffset: number | undefined;

  get facts(): Inspection['tmem'] {
    return this.#facts && { ...this.#facts, pools: this.#pools };
  }

  /** Takes an event. Returns a row once what it tells of is whole. */
  event(event: LegacyTmemEvent): TmemRow | undefined {
    switch (event.part) {
      case 'section': {
        const { version, maxPools, flags, weight, cap } = event.section;
        const sections = (this.#facts?.sections ?? 0) + 1;
        this.#facts = { ...this.#begin(), sections, version, maxPools, flags, weight, cap };
        const name = legacyChunkName(LegacyChunk.TMEM);
        return { name, offset: event.offset, length: 28, about: clientText(flags, weight, cap) };
      }
      case 'pool': {
        const row = poolRow(event.pool);
        if (this.#pools.length < POOLS_MAX) this.#pools.push(row);
        this.#pool = { row, offset: event.offset };
        return event.pool.pages === 0 ? this.endPool() : undefined;
      }
      case 'page':
        if (this.#pool !== undefined) this.#pool.row.present++;
        this.#begin().pages++;
        return undefined;
      case 'pool-end':
        if (this.#pool !== undefined) this.#pool.row.end = event.end;
        return this.endPool();
      case 'section-end':
        return undefined;
      case 'flush':
        this.#extraOffset ??= event.offset - 4;
        this.#begin().invalidated++;
        return undefined;
      case 'flush-end': {
        const offset = this.#extraOffset ?? event.offset - 4;
        this.#extraOffset = undefined;
        this.#begin();
        return {
          name: legacyChunkName(LegacyChunk.TMEM_EXTRA),
          offset,
          length: event.pages * HANDLE_SIZE + 4,
          about: `${plural(event.pages, 'page')} invalidated`,
        };
      }
    }
  }

  /** The pool that was being read, also one whose end never came. */
  endPool(): TmemRow | undefined {
    if (this.#pool === undefined) return undefined;
    const { row, offset } = this.#pool;
    this.#pool = undefined;
    const length =
      POOL_HEAD_SIZE + row.present * (PAGE_HEAD_SIZE + row.pageSize) + (row.end === 'terminator' ? 24 : 0);
    return { name: 'tmem pool', offset, length, about: poolText(row) };
  }

  #begin(): Writable<TmemFacts> {
    this.#facts ??= {
      sections: 0,
      version: undefined,
      maxPools: undefined,
      flags: undefined,
      weight: undefined,
      cap: undefined,
      pages: 0,
      invalidated: 0,
      pools: [],
    };
    return this.#facts;
  }
}

function poolRow(pool: TmemPool): Writable<TmemPoolRow> {
  const { poolId, flags, persistent, shared, pageSize, pages } = pool;
  const precompressed = (flags & TmemPoolFlag.PRECOMPRESSED) !== 0;
  return {
    poolId,
    flags,
    persistent,
    shared,
    precompressed,
    pageSize,
    uuid: tmemPoolUuid(pool),
    declared: pages,
    present: 0,
    end: pages === 0 ? 'count' : undefined,
  };
}

function clientText(flags: number, weight: number, cap: number): string {
  const words = [
    (flags & TmemClientFlag.COMPRESS) !== 0 ? 'compressed' : undefined,
    (flags & TmemClientFlag.FROZEN) !== 0 ? 'frozen' : undefined,
  ].filter((word) => word !== undefined);
  return [
    `flags 0x${flags.toString(16)}${words.length > 0 ? ` (${words.join(', ')})` : ''}`,
    `weight ${weight}`,
    `cap ${cap}`,
  ].join(', ');
}

/** One line on a pool: what it is, and how its list of pages ended. */
export function poolText(row: TmemPoolRow): string {
  const { poolId, flags, persistent, shared, precompressed, pageSize, declared, present, end } = row;
  const kind = [
    persistent ? 'persistent' : 'ephemeral',
    ...(shared ? ['shared'] : []),
    ...(precompressed ? ['precompressed'] : []),
  ].join(', ');
  const pages = persistent ? `, ${plural(present, 'page')} of at most ${declared} of ${pageSize} bytes` : '';
  const ended = end === undefined ? ', cut off' : end === 'missing terminator' ? ', terminator missing' : '';
  return `pool ${poolId}: ${kind} (flags 0x${flags.toString(16)})${pages}${ended}`;
}
