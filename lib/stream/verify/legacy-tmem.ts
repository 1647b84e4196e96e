/** Checks of tmem sections. No Xen of today takes them: what a conversion would drop, and what it must not. */

import { StreamErrorCode } from '../codes.js';
import { LegacyChunk, legacyChunkName } from '../legacy/constants.js';
import type { LegacyTmemEvent } from '../legacy/events.js';
import type { FindingList } from './report.js';

const TMEM = legacyChunkName(LegacyChunk.TMEM);
const TMEM_EXTRA = legacyChunkName(LegacyChunk.TMEM_EXTRA);

const plural = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`;

/** Follows the tmem sections of an image. */
export class LegacyTmemChecker {
  readonly #findings: FindingList;
  #sections = 0;
  #extras = 0;
  #ephemeral = 0;
  readonly #pools = new Set<number>();
  /** Of the section that is being read. */
  #offset = 0;

  constructor(findings: FindingList) {
    this.#findings = findings;
  }

  event(event: LegacyTmemEvent): void {
    const { offset, part } = event;
    const findings = this.#findings;
    if (event.violation !== undefined) findings.thrown(event.violation);
    const place = { offset, record: TMEM };
    switch (part) {
      case 'section':
        this.#offset = offset;
        this.#ephemeral = 0;
        if (this.#sections++ > 0) findings.error(StreamErrorCode.DUPLICATE, place, 'a second one');
        return;
      case 'pool':
        this.#pools.add(event.pool.poolId);
        if (!event.pool.persistent) this.#ephemeral++;
        else if (event.pool.pages === 0) this.#persistent(offset, event.pool.poolId, 0, 0);
        return;
      case 'pool-end': {
        const { pool, pages, end } = event;
        this.#persistent(offset, pool.poolId, pages, pool.pages);
        if (end !== 'missing terminator') return;
        const message = `pool ${pool.poolId} ends after ${plural(pages, 'page')} of ${pool.pages} without its mark, as a writer leaves it that has passed over pages`;
        findings.warning(StreamErrorCode.MISSING, { ...place, path: 'oid' }, message);
        return;
      }
      case 'section-end':
        if (this.#ephemeral === 0) return;
        findings.warning(
          StreamErrorCode.TMEM,
          { offset: this.#offset, record: TMEM },
          `${plural(this.#ephemeral, 'ephemeral pool')}: caches, which a conversion drops`,
        );
        return;
      case 'flush-end': {
        const where = { offset, record: TMEM_EXTRA };
        if (this.#sections === 0) findings.warning(StreamErrorCode.ORDER, where, `no ${TMEM} before it`);
        if (this.#extras++ > 0) findings.warning(StreamErrorCode.DUPLICATE, where, 'a second one');
        return;
      }
      case 'flush': {
        const { poolId } = event.handle;
        if (this.#pools.has(poolId)) return;
        const where = { offset, record: TMEM_EXTRA, path: 'pool_id' };
        findings.error(StreamErrorCode.FIELD, where, `pool ${poolId} is not one of the image's`);
        return;
      }
      case 'page':
        return;
    }
  }

  #persistent(offset: number, poolId: number, pages: number, said: number): void {
    const of = pages === said ? '' : ` of at most ${said}`;
    const message = `pool ${poolId} is persistent, ${plural(pages, 'page')}${of}: swapped-out memory of the guest, which no Xen since 4.13 takes`;
    this.#findings.warning(StreamErrorCode.TMEM, { offset, record: TMEM, path: 'pools' }, message);
  }
}
