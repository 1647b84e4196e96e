/**
 * What a page under a workload holds. Every word follows from (seed, pfn, generation), so the guest can tell a lost, a
 * stale, a torn and a misplaced page from a good one without another copy.
 *
 *     word    field
 *        0    magic
 *        1    pfn
 *        2    generation: 1 when the guest was made, one more with each write
 *        3    sum of the payload
 *     4-1023  payload
 */
import { mix32 } from '../prng.js';

const MAGIC = 0x4547_4150; // "PAGE"
const PAGE_WORDS = 1024;
const HEADER_WORDS = 4;
const MULTIPLIER = 0x915f_77f5;
const INCREMENT = 0x6d2b_79f5;

function start(seed: number, pfn: number, generation: number): number {
  return mix32(seed ^ mix32(pfn ^ mix32(generation)));
}

/** Writes a page at word `at`. The header goes last, as a program that takes care would do. */
export function writePage(
  words: Uint32Array,
  at: number,
  seed: number,
  pfn: number,
  generation: number,
): void {
  let x = start(seed, pfn, generation);
  let sum = 0;
  for (let i = at + HEADER_WORDS; i < at + PAGE_WORDS; i++) {
    x = (Math.imul(x, MULTIPLIER) + INCREMENT) | 0;
    sum = (sum + x) | 0;
    words[i] = x;
  }
  words[at] = MAGIC;
  words[at + 1] = pfn;
  words[at + 2] = generation;
  words[at + 3] = sum;
}

/** What is wrong with a page that ought to be `generation` of `pfn`; undefined if nothing is. */
export type ContentFault = 'magic' | 'misplaced' | 'stale' | 'contents';

function headerFault(
  words: Uint32Array,
  at: number,
  pfn: number,
  generation: number,
): ContentFault | undefined {
  if (words[at] !== MAGIC) return 'magic';
  if (words[at + 1] !== pfn) return 'misplaced';
  if (words[at + 2] !== generation) return 'stale';
  return undefined;
}

/** Compares the whole page. */
export function verifyPage(
  words: Uint32Array,
  at: number,
  seed: number,
  pfn: number,
  generation: number,
): ContentFault | undefined {
  const fault = headerFault(words, at, pfn, generation);
  if (fault !== undefined) return fault;
  let x = start(seed, pfn, generation);
  let sum = 0;
  let difference = 0;
  for (let i = at + HEADER_WORDS; i < at + PAGE_WORDS; i++) {
    x = (Math.imul(x, MULTIPLIER) + INCREMENT) | 0;
    sum = (sum + x) | 0;
    difference |= (words[i] as number) ^ x;
  }
  return difference === 0 && (words[at + 3] as number) === sum >>> 0 ? undefined : 'contents';
}

/** Compares the page with `generation` and writes `generation + 1` in its place, in one go over it. */
export function rewritePage(
  words: Uint32Array,
  at: number,
  seed: number,
  pfn: number,
  generation: number,
): ContentFault | undefined {
  const fault = headerFault(words, at, pfn, generation);
  const oldSum = words[at + 3] as number;
  let old = start(seed, pfn, generation);
  let x = start(seed, pfn, generation + 1);
  let difference = 0;
  let expected = 0;
  let sum = 0;
  for (let i = at + HEADER_WORDS; i < at + PAGE_WORDS; i++) {
    old = (Math.imul(old, MULTIPLIER) + INCREMENT) | 0;
    expected = (expected + old) | 0;
    difference |= (words[i] as number) ^ old;
    x = (Math.imul(x, MULTIPLIER) + INCREMENT) | 0;
    sum = (sum + x) | 0;
    words[i] = x;
  }
  words[at] = MAGIC;
  words[at + 1] = pfn;
  words[at + 2] = generation + 1;
  words[at + 3] = sum;
  if (fault !== undefined) return fault;
  return difference === 0 && oldSum === expected >>> 0 ? undefined : 'contents';
}

/** True if the page is all zeros. */
export function isZeroPage(words: Uint32Array, at: number): boolean {
  let any = 0;
  for (let i = at; i < at + PAGE_WORDS; i++) any |= words[i] as number;
  return any === 0;
}
