/**
 * Page contents of compressed checkpoints, for tests. One delta for each page with contents, against what the receiver
 * has of it:
 *
 *     00                      the page has not changed
 *     80, 4096 bytes          the whole page
 *     (marker, …)*            until 4096 bytes are covered. Marker: bit 7 set to leave, clear to replace; bits 6–0, 1 to
 *                             127, so many words of 32 bits; to replace, their bytes follow
 */

import { cat } from './bytes.js';

export type Delta = Uint8Array;

const PAGE = 4096;
const RUN_MAX = 127;
const SKIP = 0x80;

/** Longest delta that there is: nine markers and a page. */
export const DELTA_MAX = PAGE + 9;

export const unchanged: Delta = Uint8Array.of(0);

export function full(contents: Uint8Array): Delta {
  return cat(Uint8Array.of(SKIP), contents);
}

/** Runs, written out: [words to leave, bytes to put in their place or a number of words, …]. For damaged ones too. */
export function rawRuns(...runs: readonly (number | Uint8Array)[]): Delta {
  return cat(
    ...runs.map((run) => {
      if (typeof run === 'number') return Uint8Array.of(SKIP | run);
      return cat(Uint8Array.of(run.length / 4), run);
    }),
  );
}

/** Runs from one state of a page to the next, as the sender makes them; a page that is the same is `unchanged`. */
export function runs(before: Uint8Array, after: Uint8Array): Delta {
  const changed = (word: number): boolean =>
    [0, 1, 2, 3].some((i) => before[4 * word + i] !== after[4 * word + i]);
  const parts: (number | Uint8Array)[] = [];
  for (let at = 0; at < PAGE / 4;) {
    const copy = changed(at);
    let end = at + 1;
    while (end < PAGE / 4 && end - at < RUN_MAX && changed(end) === copy) end++;
    parts.push(copy ? after.subarray(4 * at, 4 * end) : end - at);
    at = end;
  }
  return parts.every((part) => typeof part === 'number') ? unchanged : rawRuns(...parts);
}

/** Plays a delta: what the page is after it. The check of the functions above. */
export function play(before: Uint8Array, delta: Delta): Uint8Array {
  if (delta[0] === 0 && delta.length === 1) return before;
  if (delta[0] === SKIP && delta.length === PAGE + 1) return delta.subarray(1);
  const after = Uint8Array.from(before);
  let at = 0;
  let read = 0;
  while (at < PAGE) {
    const marker = delta[read++] as number;
    const size = 4 * (marker & RUN_MAX);
    if (size === 0 || at + size > PAGE) throw new Error(`delta: run of ${size} bytes at ${at}`);
    if ((marker & SKIP) === 0) {
      if (read + size > delta.length) throw new Error('delta: ends in a run');
      after.set(delta.subarray(read, read + size), at);
      read += size;
    }
    at += size;
  }
  if (read !== delta.length) throw new Error('delta: bytes after its end');
  return after;
}
