/** VERIFY: the sender sends all memory again, and the receiver compares instead of copying. */
import { MAX_BATCH, PAGE_SIZE } from '../abi/pages.js';
import type { PageMapping } from '../host/host.js';

const PAGE_WORDS = PAGE_SIZE / 4;

/** Room for one batch in the form of a mapping, so that contents take the same way as they do into a guest. */
export class VerifyScratch {
  readonly mapping: PageMapping;

  constructor() {
    const memory = new ArrayBuffer(MAX_BATCH * PAGE_SIZE);
    const offsetOf = new Float64Array(MAX_BATCH);
    for (let i = 0; i < MAX_BATCH; i++) offsetOf[i] = i * PAGE_SIZE;
    this.mapping = {
      count: MAX_BATCH,
      regions: [new Uint8Array(memory)],
      words: [new Uint32Array(memory)],
      regionOf: new Uint16Array(MAX_BATCH),
      offsetOf,
      errors: new Int32Array(MAX_BATCH),
      release: () => undefined,
    };
  }
}

/** Calls `differs` with the number of each of the first `count` pages that is not the same in both mappings. */
export function comparePages(
  a: PageMapping,
  b: PageMapping,
  count: number,
  differs: (i: number) => void,
): void {
  for (let i = 0; i < count; i++) {
    const left = a.words[a.regionOf[i] as number] as Uint32Array;
    const right = b.words[b.regionOf[i] as number] as Uint32Array;
    const from = (a.offsetOf[i] as number) / 4;
    const shift = (b.offsetOf[i] as number) / 4 - from;
    let w = from;
    const end = from + PAGE_WORDS;
    while (w < end && left[w] === right[w + shift]) w++;
    if (w < end) differs(i);
  }
}
