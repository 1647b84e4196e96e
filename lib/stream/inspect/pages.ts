/** Statistics of PAGE_DATA records and of a legacy image's page batches. */

import { PAGE_SIZE, pageTypeHasData, pageTypeName } from '../../abi/pages.js';
import type { PageBytesEvent, PageDataEvent } from '../events.js';
import { SeenFrames } from './frames.js';
import type { Iteration, PageCounts } from './report.js';

/** Iterations that are told one by one. */
const ITERATIONS_MAX = 10_000;

const ZERO = Buffer.alloc(PAGE_SIZE);

/** Follows the pages of a stream. */
export class PageStatistics {
  readonly #seen = new SeenFrames();
  readonly #byType = new Float64Array(16);
  readonly #iterations: Iteration[] = [];
  #omitted = 0;
  #part: Iteration['part'] = 'transfer';
  #current: Iteration | undefined;
  #lastPfn = Infinity;
  #entries = 0;
  #data = 0;
  #compressed = 0;
  #zero = 0;
  #verified = 0;
  #highest = -1;
  /** The page that a piece left unfinished: has it been all zero so far? */
  #zeroSoFar = true;

  /** What follows is not part of the pass before: after VERIFY, after a checkpoint. */
  begin(part: Iteration['part']): void {
    this.#part = part;
    this.#lastPfn = Infinity;
  }

  table(event: PageDataEvent): void {
    const { pfns, types, count, dataPages } = event;
    const verify = this.#part === 'verify';
    if (count > 0) this.#iterate(event);
    const iteration = this.#current;
    if (iteration !== undefined) {
      iteration.records++;
      iteration.entries += count;
      if (event.compressed === true) iteration.compressedPages += dataPages;
      else iteration.dataPages += dataPages;
    }
    if (verify) {
      this.#verified += dataPages;
      return;
    }
    this.#entries += count;
    if (event.compressed === true) this.#compressed += dataPages;
    else this.#data += dataPages;
    for (let i = 0; i < count; i++) {
      const type = types[i] as number;
      this.#byType[type] = (this.#byType[type] as number) + 1;
      if (!pageTypeHasData(type)) continue;
      const pfn = pfns[i] as number;
      if (pfn > this.#highest) this.#highest = pfn;
      this.#seen.add(pfn);
    }
  }

  /** Counts zero pages, which may begin in one piece and end in another. */
  contents({ at, bytes }: PageBytesEvent): void {
    let zero = 0;
    let from = 0;
    while (from < bytes.length) {
      const inPage = (at + from) % PAGE_SIZE;
      if (inPage === 0) this.#zeroSoFar = true;
      const to = Math.min(bytes.length, from + PAGE_SIZE - inPage);
      // Most pages differ in their first byte; memcmp stops at the first that does.
      this.#zeroSoFar &&= bytes[from] === 0 && ZERO.compare(bytes, from, to, 0, to - from) === 0;
      if (this.#zeroSoFar && inPage + to - from === PAGE_SIZE) zero++;
      from = to;
    }
    if (zero === 0) return;
    if (this.#current !== undefined) this.#current.zeroPages += zero;
    if (this.#part !== 'verify') this.#zero += zero;
  }

  get iterations(): readonly Iteration[] {
    return this.#iterations;
  }

  get iterationsOmitted(): number {
    return this.#omitted;
  }

  counts(): PageCounts {
    const byType: Record<string, number> = {};
    this.#byType.forEach((n, type) => {
      if (n > 0) byType[pageTypeName(type)] = n;
    });
    return {
      entries: this.#entries,
      data: this.#data,
      compressed: this.#compressed,
      zero: this.#zero,
      byType,
      frames: this.#seen.frames,
      framesSentAgain: this.#seen.framesAgain,
      untracked: this.#seen.untracked,
      highestPfn: this.#highest < 0 ? undefined : this.#highest,
      verified: this.#verified,
    };
  }

  /** Senders go upwards through the frames: where they go down, a new pass has begun. */
  #iterate(event: PageDataEvent): void {
    const first = event.pfns[0] as number;
    const last = event.pfns[event.count - 1] as number;
    const goesOn = first > this.#lastPfn;
    this.#lastPfn = Math.max(first, last);
    if (goesOn) return;
    this.#current = {
      part: this.#part,
      offset: event.offset,
      records: 0,
      entries: 0,
      dataPages: 0,
      zeroPages: 0,
      compressedPages: 0,
    };
    if (this.#iterations.length < ITERATIONS_MAX) this.#iterations.push(this.#current);
    else this.#omitted++;
  }
}
