/** What callers do with a `PageMapping`: views of neighbouring pages, and copies, without an object for each page. */
import { PAGE_SIZE } from '../abi/pages.js';
import type { PageMapping } from './host.js';

/** Views longer than this many runs cost more than copying the pages together; see `gatherRuns`. */
const MAX_RUNS = 64;

/** A view of page i. For single special pages, not for loops over guest memory. */
export function pageView(mapping: PageMapping, i: number): Uint8Array {
  const region = mapping.regions[mapping.regionOf[i] as number] as Uint8Array;
  const at = mapping.offsetOf[i] as number;
  return region.subarray(at, at + PAGE_SIZE);
}

/** Pages from `i` on (at most up to `end`) that lie side by side in memory. */
export function runLength(mapping: PageMapping, i: number, end = mapping.count): number {
  if (mapping.plain === true) return end - i;
  const { regionOf, offsetOf } = mapping;
  const region = regionOf[i];
  let at = offsetOf[i] as number;
  let j = i + 1;
  while (j < end && regionOf[j] === region && offsetOf[j] === at + PAGE_SIZE) {
    at += PAGE_SIZE;
    j++;
  }
  return j - i;
}

/**
 * Appends views that cover pages `from`…`to`−1 in order to `views`, neighbours merged. Returns false, with `views`
 * as it was, if that would take more than a few dozen views: then `copyOut` is the cheaper way.
 */
export function gatherRuns(mapping: PageMapping, from: number, to: number, views: Uint8Array[]): boolean {
  if (mapping.plain === true) {
    views.push((mapping.regions[0] as Uint8Array).subarray(from * PAGE_SIZE, to * PAGE_SIZE));
    return true;
  }
  const before = views.length;
  for (let i = from; i < to;) {
    if (views.length - before === MAX_RUNS) {
      views.length = before;
      return false;
    }
    const n = runLength(mapping, i, to);
    const region = mapping.regions[mapping.regionOf[i] as number] as Uint8Array;
    const at = mapping.offsetOf[i] as number;
    views.push(region.subarray(at, at + n * PAGE_SIZE));
    i += n;
  }
  return true;
}

const PAGE_WORDS = PAGE_SIZE / 4;

/**
 * Copies page i into `words` at word `at`. By hand, because `set` would need a view of each page; eight words at a
 * time, which takes half the time of one by one.
 */
export function copyPageOut(mapping: PageMapping, i: number, words: Uint32Array, at: number): void {
  const source = mapping.words[mapping.regionOf[i] as number] as Uint32Array;
  let from = (mapping.offsetOf[i] as number) / 4;
  for (const end = from + PAGE_WORDS; from < end; from += 8, at += 8) {
    words[at] = source[from] as number;
    words[at + 1] = source[from + 1] as number;
    words[at + 2] = source[from + 2] as number;
    words[at + 3] = source[from + 3] as number;
    words[at + 4] = source[from + 4] as number;
    words[at + 5] = source[from + 5] as number;
    words[at + 6] = source[from + 6] as number;
    words[at + 7] = source[from + 7] as number;
  }
}

/** Copies pages `from`…`to`−1, one after the other, into `words` from word `at` on. */
export function copyOut(
  mapping: PageMapping,
  from: number,
  to: number,
  words: Uint32Array,
  at: number,
): void {
  for (let i = from; i < to;) {
    const n = runLength(mapping, i, to);
    if (n === 1) copyPageOut(mapping, i, words, at);
    else {
      const start = (mapping.offsetOf[i] as number) / 4;
      const source = mapping.words[mapping.regionOf[i] as number] as Uint32Array;
      words.set(source.subarray(start, start + n * PAGE_WORDS), at);
    }
    at += n * PAGE_WORDS;
    i += n;
  }
}

/**
 * Copies `bytes` into the mapped pages, taken as one long array, from byte `at` on. The pages side by side get one
 * copy. This is the one copy that a restored page sees.
 */
export function copyIn(mapping: PageMapping, at: number, bytes: Uint8Array): void {
  let done = 0;
  while (done < bytes.length) {
    const i = Math.floor((at + done) / PAGE_SIZE);
    const within = (at + done) % PAGE_SIZE;
    const region = mapping.regions[mapping.regionOf[i] as number] as Uint8Array;
    const room =
      runLength(
        mapping,
        i,
        Math.min(mapping.count, i + Math.ceil((within + bytes.length - done) / PAGE_SIZE)),
      ) *
        PAGE_SIZE -
      within;
    const n = Math.min(room, bytes.length - done);
    const piece = n === bytes.length ? bytes : bytes.subarray(done, done + n);
    region.set(piece, (mapping.offsetOf[i] as number) + within);
    done += n;
  }
}
