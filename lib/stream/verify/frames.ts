/** Frames of a PAGE_DATA record. */

/** Entries beyond which a record is not searched for repeated frames. Xen's sender writes at most 1024. */
export const REPEAT_SEARCH_MAX = 1 << 20;

/** Finds frames that stand twice in one record, without an object for each page. */
export class RepeatedFrames {
  #scratch = new Float64Array(1024);

  /** A frame that stands twice among the first `count`, or −1. Records in ascending order cost one pass. */
  find(pfns: Float64Array, count: number): number {
    let last = -1;
    for (let i = 0; i < count; i++) {
      const pfn = pfns[i] as number;
      if (pfn <= last) return pfn === last ? pfn : this.#search(pfns, count);
      last = pfn;
    }
    return -1;
  }

  #search(pfns: Float64Array, count: number): number {
    if (count > REPEAT_SEARCH_MAX) return -1;
    if (count > this.#scratch.length) this.#scratch = new Float64Array(count);
    const sorted = this.#scratch.subarray(0, count);
    sorted.set(pfns.subarray(0, count));
    sorted.sort();
    for (let i = 1; i < count; i++) if (sorted[i] === sorted[i - 1]) return sorted[i] as number;
    return -1;
  }
}
