/**
 * The pages of a pass with their types, some batches ahead of those that are being sent.
 *
 * A guest with a hole below 4 GiB has a thousand batches without a single page. Asking for the types of each by itself
 * would take longer than everything else, so the types of many batches are asked for in one call, and those of the next
 * ones while these are being sent.
 */
import { MAX_BATCH, PageType } from '../abi/pages.js';
import type { SaveContext } from './context.js';

/** Batches whose types are asked for at once. */
const BATCHES = 16;

/** Pages whose types are being asked for, or known. */
class Window {
  readonly pfns = new Float64Array(BATCHES * MAX_BATCH);
  readonly gfns = new Float64Array(BATCHES * MAX_BATCH);
  readonly types = new Uint8Array(BATCHES * MAX_BATCH);
  count = 0;
  /** Those that have been handed out. */
  taken = 0;
  /** Settles with the types; a rejection is not lost if nobody waits yet. */
  ready: Promise<void> = Promise.resolve();
  known = false;
}

/** One batch: views of arrays that stay as they are until the next batch is asked for. */
export interface Batch {
  readonly pfns: Float64Array;
  readonly gfns: Float64Array;
  readonly types: Uint8Array;
  readonly count: number;
  /** The type of all of them, if it is NOTAB or XTAB; else −1. */
  readonly uniform: number;
}

/** Whole batches of the two types that nearly all pages have, to compare with: as fast as memory can be read. */
const SAMPLES = [PageType.NOTAB, PageType.XTAB].map((type) => ({
  type,
  batch: new Uint8Array(MAX_BATCH).fill(type),
}));

function uniformType(types: Uint8Array): number {
  for (const { type, batch } of SAMPLES) {
    if (types[0] !== type) continue;
    const sample = types.length === MAX_BATCH ? batch : batch.subarray(0, types.length);
    return Buffer.compare(types, sample) === 0 ? type : -1;
  }
  return -1;
}

export class Lookahead {
  readonly #context: SaveContext;
  #current = new Window();
  #next = new Window();
  /** First pfn that no window has. */
  #from = 0;

  constructor(context: SaveContext) {
    this.#context = context;
  }

  /** Begins a pass over the context's dirty pages. Those of an earlier one that were not taken are forgotten. */
  async begin(): Promise<void> {
    await this.settle();
    this.#from = 0;
    this.#fill(this.#current);
    this.#next.count = 0;
    this.#next.taken = 0;
  }

  /** The next batch, ascending; undefined if there is none left. Rejects as `Domain.pageTypes` does. */
  async next(): Promise<Batch | undefined> {
    if (this.#current.taken === this.#current.count) {
      [this.#current, this.#next] = [this.#next, this.#current];
      this.#next.count = 0;
      this.#next.taken = 0;
    }
    const window = this.#current;
    if (window.taken === window.count) return undefined;
    await window.ready;
    window.known = true;
    // The other one is asked for when this one is known, so that its answer is not older than it must be.
    if (this.#next.count === 0 && this.#from < this.#context.p2mSize) this.#fill(this.#next);
    return this.take();
  }

  /** The same where there is nothing to wait for; undefined if there is, or if none is left. */
  take(): Batch | undefined {
    const window = this.#current;
    if (!window.known || window.taken === window.count) return undefined;
    const from = window.taken;
    const to = Math.min(window.count, from + MAX_BATCH);
    window.taken = to;
    const types = window.types.subarray(from, to);
    return {
      pfns: window.pfns.subarray(from, to),
      gfns: window.gfns.subarray(from, to),
      types,
      count: to - from,
      uniform: uniformType(types),
    };
  }

  /** Waits until nothing is being asked, however that ends. */
  async settle(): Promise<void> {
    await Promise.allSettled([this.#current.ready, this.#next.ready]);
  }

  /** Finds the next pages and asks for their types. */
  #fill(window: Window): void {
    const { dirty, p2mSize, domain, ops } = this.#context;
    const pfns = window.pfns.subarray(0, this.#size());
    let count = dirty.collect(this.#from, pfns);
    // Frame numbers beyond the last one would begin anew at 2^32.
    this.#from = count < pfns.length ? p2mSize : (pfns[count - 1] as number) + 1;
    // The hypervisor fills whole words of the bitmap.
    while (count > 0 && (pfns[count - 1] as number) >= p2mSize) count--;
    window.count = count;
    window.taken = 0;
    window.known = false;
    if (count === 0) return;
    ops.pfnsToGfns(pfns, count, window.gfns);
    const ready = domain.pageTypes(window.gfns.subarray(0, count), window.types.subarray(0, count));
    ready.catch(() => undefined);
    window.ready = ready;
  }

  /**
   * Frames of a PV guest that runs become page tables and stop being some: nothing is lost by that, since Xen marks
   * them as written, but the less of it happens between type and contents, the fewer pages have to go again.
   */
  #size(): number {
    const { info, guestSuspended } = this.#context;
    return info.hvm || guestSuspended ? BATCHES * MAX_BATCH : MAX_BATCH;
  }
}
