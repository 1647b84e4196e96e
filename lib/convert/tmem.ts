/**
 * What becomes of a legacy image's tmem sections: refused, dropped or exported. No v2 stream can carry them.
 * docs/design/tmem.md has the reasons.
 */

import { CancelledError, UsageError, type StreamFormatError } from '../errors.js';
import { formatError, StreamErrorCode } from '../stream/codes.js';
import { LegacyChunk, legacyChunkName, TmemPoolFlag } from '../stream/legacy/constants.js';
import type {
  LegacyTmemEvent,
  TmemHandle,
  TmemPool,
  TmemPoolEnd,
  TmemSection,
} from '../stream/legacy/events.js';
import { tmemPoolUuid } from '../stream/legacy/tmem.js';
import { poolFiles, TmemExport } from './tmem-export.js';

/**
 * `refuse`: no image with a tmem pool is converted. `drop-ephemeral`: pools that hold no data of the guest are left out,
 * others refused. `export`: as before, but the pages of persistent pools are written to this folder.
 */
export type TmemChoice = 'refuse' | 'drop-ephemeral' | { readonly export: string };

/** A tmem pool of a legacy image. */
export interface TmemPoolSummary {
  readonly poolId: number;
  /** Bits of TmemPoolFlag, page size and version, as they stand in the image. */
  readonly flags: number;
  /** Persistent pools hold swapped-out memory, ephemeral ones a cache. */
  readonly kind: 'persistent' | 'ephemeral';
  readonly shared: boolean;
  readonly precompressed: boolean;
  /** Bytes. */
  readonly pageSize: number;
  /** All zeros for a pool that is not shared. */
  readonly uuid: string;
  /** Pages that the pool claims to have. A pool's first page is never there: Xen's writer passed over it. */
  readonly pages: number;
  readonly pagesThere: number;
  /** Pages claimed that are not there. */
  readonly missing: number;
  /** Pages that chunk −6 takes back: the guest gave them up while it was being saved. */
  readonly invalidated: number;
  /** Why its list of pages ended. */
  readonly end: TmemPoolEnd;
}

/** The tmem of a legacy image, and what became of it. Plain data. */
export interface TmemSummary {
  /** Sections in the image. Never more than 1. */
  readonly sections: number;
  /** Offset of the section in the stream. */
  readonly offset: number;
  readonly version: number;
  /** Bits of TmemClientFlag. */
  readonly clientFlags: number;
  readonly weight: number;
  readonly cap: number;
  readonly pools: readonly TmemPoolSummary[];
  /** Pools that were left out: ephemeral ones, and persistent ones without pages. */
  readonly dropped: number;
  /** The folder that the other pools' pages are in; undefined if there was none. */
  readonly exported: string | undefined;
}

interface Pool {
  readonly pool: TmemPool;
  there: number;
  invalidated: number;
  end: TmemPoolEnd;
}

const RECORD = legacyChunkName(LegacyChunk.TMEM);
const EXTRA = legacyChunkName(LegacyChunk.TMEM_EXTRA);

/** True for pools whose loss the guest would notice. */
function holdsData({ pool }: Pool): boolean {
  return pool.persistent && pool.pages > 0;
}

/**
 * Takes the tmem events of one image in their order. Refusals are StreamFormatErrors with ERR_XEN_STREAM_TMEM, at the end
 * of the section and with its offset. Files come into being under temporary names; `end` gives them their own. Memory does
 * not grow with the number of pages.
 */
export class TmemKeeper {
  readonly #choice: TmemChoice;
  readonly #pools = new Map<number, Pool>();
  #section: (TmemSection & { readonly offset: number }) | undefined;
  /** Between a section's head and its end. */
  #inside = false;
  #export: TmemExport | undefined;
  /** The last `take` or `end` that had to wait; never rejects. */
  #busy: Promise<unknown> = Promise.resolve();
  #aborted = false;

  /** @throws UsageError for anything else than a TmemChoice */
  constructor(choice: TmemChoice = 'refuse') {
    const folder = (choice as { readonly export?: unknown } | null)?.export;
    const known = choice === 'refuse' || choice === 'drop-ephemeral';
    if (!known && (typeof folder !== 'string' || folder === '')) {
      throw new UsageError("tmem: not 'refuse', 'drop-ephemeral' or { export: folder }");
    }
    this.#choice = choice;
  }

  /**
   * Takes an event; what it returns is to be awaited before the next one. The bytes of a page are given away.
   * Throws at once where nothing has to be waited for.
   *
   * @throws StreamFormatError (TMEM) for what the choice does not cover; DUPLICATE for a second section, FIELD for an
   *   invalidated page of no pool, both of which no receiver took; UsageError if the folder holds an export already;
   *   TransportError
   */
  take(event: LegacyTmemEvent): Promise<void> | void {
    if (this.#aborted) throw gaveUp();
    const work = this.#take(event);
    if (work !== undefined) this.#busy = work.catch(() => undefined);
    return work;
  }

  #take(event: LegacyTmemEvent): Promise<void> | undefined {
    switch (event.part) {
      case 'section':
        if (this.#section !== undefined) {
          const where = { offset: event.offset, record: RECORD };
          throw formatError(StreamErrorCode.DUPLICATE, 'a second tmem section', where);
        }
        this.#section = { ...event.section, offset: event.offset };
        this.#inside = true;
        return undefined;
      case 'pool':
        return this.#begin({ pool: event.pool, there: 0, invalidated: 0, end: 'count' });
      case 'page':
        return this.#export?.page(event.handle, event.bytes);
      case 'pool-end': {
        const pool = this.#pools.get(event.pool.poolId);
        if (pool !== undefined) {
          pool.there = event.pages;
          pool.end = event.end;
        }
        return this.#export?.poolEnd();
      }
      case 'section-end':
        this.#inside = false;
        this.#judge();
        return undefined;
      case 'flush':
        return this.#invalidate(event.handle, event.offset);
      case 'flush-end':
        return undefined;
    }
  }

  /**
   * The image is complete. Exported files get their names.
   *
   * @returns undefined if the image had no tmem section
   * @throws as `take`
   */
  async end(): Promise<TmemSummary | undefined> {
    if (this.#aborted) throw gaveUp();
    const section = this.#section;
    if (section === undefined) return undefined;
    if (this.#inside) {
      const where = { offset: section.offset, record: RECORD };
      throw formatError(StreamErrorCode.TRUNCATED, 'the tmem section has no end', where);
    }
    const pools = [...this.#pools.values()];
    const summary: TmemSummary = {
      sections: 1,
      offset: section.offset,
      version: section.version,
      clientFlags: section.flags,
      weight: section.weight,
      cap: section.cap,
      pools: pools.map(summaryOf),
      dropped: pools.filter((pool) => !holdsData(pool)).length,
      exported: this.#export === undefined ? undefined : this.#folder,
    };
    const work = this.#export?.end(description(summary));
    this.#busy = Promise.resolve(work).catch(() => undefined);
    await work;
    return summary;
  }

  /**
   * The conversion failed. Removes every file that was written, after `end` too, and the folder if it was made; waits for
   * what is under way. Idempotent. Rejects with TransportError if something cannot be removed.
   */
  async abort(): Promise<void> {
    this.#aborted = true;
    await this.#busy;
    await this.#export?.abort();
  }

  get #folder(): string | undefined {
    return typeof this.#choice === 'object' ? this.#choice.export : undefined;
  }

  #begin(pool: Pool): Promise<void> | undefined {
    this.#pools.set(pool.pool.poolId, pool);
    const folder = this.#folder;
    return folder !== undefined && holdsData(pool) ? this.#beginExport(folder, pool) : undefined;
  }

  async #beginExport(folder: string, { pool }: Pool): Promise<void> {
    if (this.#export === undefined) {
      this.#export = new TmemExport(folder);
      await this.#export.open();
    }
    await this.#export.pool(pool.poolId);
  }

  #invalidate(handle: TmemHandle, offset: number): Promise<void> | undefined {
    const pool = this.#pools.get(handle.poolId);
    if (pool === undefined) {
      const reason = `pool ${handle.poolId} is not one of the image's`;
      throw formatError(StreamErrorCode.FIELD, reason, { offset, record: EXTRA, path: 'pool_id' });
    }
    pool.invalidated++;
    return this.#export?.invalidated(handle);
  }

  /** At the end of the section, when all of its pools are known. */
  #judge(): void {
    const pools = [...this.#pools.values()];
    if (this.#choice === 'refuse' && pools.length > 0) throw this.#refusal(pools);
    if (this.#choice === 'drop-ephemeral') {
      const lost = pools.filter(holdsData);
      if (lost.length > 0) throw this.#refusal(lost);
    }
  }

  #refusal(pools: readonly Pool[]): StreamFormatError {
    const offset = this.#section?.offset ?? 0;
    const cure = pools.some(holdsData)
      ? "the choice 'export' writes their pages to a folder, and the restored guest will not find them"
      : "the choice 'drop-ephemeral' leaves them out, and nothing of the guest is lost";
    const reason = `the guest used tmem, which v2 streams cannot carry: ${pools.map(poolText).join('; ')}; ${cure}`;
    return formatError(StreamErrorCode.TMEM, reason, { offset, record: RECORD });
  }
}

function gaveUp(): CancelledError {
  return new CancelledError('the tmem of the image was given up');
}

function poolText(entry: Pool): string {
  const { pool, there } = entry;
  const kind = pool.persistent ? 'persistent' : 'ephemeral';
  const shared = pool.shared ? ', shared' : '';
  if (!pool.persistent) return `pool ${pool.poolId} (${kind}${shared}, a cache)`;
  const bytes = there * pool.pageSize;
  return `pool ${pool.poolId} (${kind}${shared}, ${pool.pages} pages claimed, ${there} there, ${bytes} bytes)`;
}

function summaryOf({ pool, there, invalidated, end }: Pool): TmemPoolSummary {
  return {
    poolId: pool.poolId,
    flags: pool.flags,
    kind: pool.persistent ? 'persistent' : 'ephemeral',
    shared: pool.shared,
    precompressed: (pool.flags & TmemPoolFlag.PRECOMPRESSED) !== 0,
    pageSize: pool.pageSize,
    uuid: tmemPoolUuid(pool),
    pages: pool.pages,
    pagesThere: there,
    missing: pool.pages - there,
    invalidated,
    end,
  };
}

/** What tmem.json says. */
function description(summary: TmemSummary): Record<string, unknown> {
  const { offset, version, clientFlags, weight, cap, pools } = summary;
  return {
    format: 'xen-migration tmem export',
    version: 1,
    note: 'Memory that the guest had given to Xen (tmem). The converted image has none of it: once restored, the guest will not find these pages.',
    section: { offset, version, clientFlags, weight, cap },
    pools: pools.map((pool) => ({
      ...pool,
      files: pool.kind === 'persistent' && pool.pages > 0 ? poolFiles(pool.poolId) : null,
    })),
  };
}
