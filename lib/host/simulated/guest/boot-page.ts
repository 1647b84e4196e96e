/**
 * The boot page of a guest program: where its pages are and what its workload does. It lies in guest memory, so that
 * a restored guest knows all this by what the stream brought, and by nothing else.
 *
 * Pages are numbered here by their index: position in the program's ranges of pfns, one range after the other.
 *
 *     word   field
 *        0   magic
 *        1   sum over words 2-63
 *        2   seed
 *        3   workload kind, index into `workloadKinds`
 *        4   rate, page writes a second; 0 = as fast as it can
 *      5-6   steps after which the workload rests, low and high; 0 = never
 *        7   pages of the hot set
 *        8   writes to the hot set, in percent
 *        9   ledger: first index (its pages hold one u32 generation for each data page)
 *       10   trace: first index
 *       11   trace: entries, u32 each
 *       12   data: first index
 *       13   data: pages
 *       14   pages after the data, untouched and zero
 *       15   sum over the trace
 *       16   number of ranges
 *    17-62   ranges: first pfn, count
 */
import { mix32 } from '../prng.js';
import type { FrameRange } from '../pv-types.js';
import type { WorkloadKind } from './workload.js';
import { workloadKinds } from './workload.js';

const MAGIC = 0x3142_4d58; // "XMB1"
const WORDS = 64;
const RANGES_AT = 17;
/** Ranges of pfns that a guest program can have. */
export const MAX_RANGES = Math.floor((WORDS - RANGES_AT) / 2);
/** u32 entries in one page. */
export const ENTRIES_PER_PAGE = 1024;

export interface BootPage {
  readonly seed: number;
  readonly workload: WorkloadKind;
  readonly rate: number;
  readonly maxSteps: number;
  readonly hotPages: number;
  readonly hotPercent: number;
  readonly ledgerFirst: number;
  readonly traceFirst: number;
  readonly traceEntries: number;
  readonly traceSum: number;
  readonly dataFirst: number;
  readonly dataPages: number;
  readonly idlePages: number;
  readonly ranges: readonly FrameRange[];
}

function sumOf(words: Uint32Array, at: number): number {
  let sum = 0;
  for (let i = 2; i < WORDS; i++) sum = mix32(sum ^ (words[at + i] as number) ^ i);
  return sum;
}

export function writeBootPage(words: Uint32Array, at: number, boot: BootPage): void {
  words.fill(0, at, at + WORDS);
  words[at] = MAGIC;
  words[at + 2] = boot.seed;
  words[at + 3] = workloadKinds.indexOf(boot.workload);
  words[at + 4] = boot.rate;
  words[at + 5] = boot.maxSteps >>> 0;
  words[at + 6] = Math.floor(boot.maxSteps / 0x1_0000_0000);
  words[at + 7] = boot.hotPages;
  words[at + 8] = boot.hotPercent;
  words[at + 9] = boot.ledgerFirst;
  words[at + 10] = boot.traceFirst;
  words[at + 11] = boot.traceEntries;
  words[at + 12] = boot.dataFirst;
  words[at + 13] = boot.dataPages;
  words[at + 14] = boot.idlePages;
  words[at + 15] = boot.traceSum;
  words[at + 16] = boot.ranges.length;
  boot.ranges.forEach((range, i) => {
    words[at + RANGES_AT + 2 * i] = range.first;
    words[at + RANGES_AT + 2 * i + 1] = range.count;
  });
  words[at + 1] = sumOf(words, at);
}

/** Undefined if this is no intact boot page. */
export function readBootPage(words: Uint32Array, at: number): BootPage | undefined {
  if (words[at] !== MAGIC || words[at + 1] !== sumOf(words, at)) return undefined;
  const workload = workloadKinds[words[at + 3] as number];
  const count = words[at + 16] as number;
  if (workload === undefined || count > MAX_RANGES) return undefined;
  const ranges: FrameRange[] = [];
  for (let i = 0; i < count; i++) {
    ranges.push({
      first: words[at + RANGES_AT + 2 * i] as number,
      count: words[at + RANGES_AT + 2 * i + 1] as number,
    });
  }
  return {
    seed: words[at + 2] as number,
    workload,
    rate: words[at + 4] as number,
    maxSteps: (words[at + 6] as number) * 0x1_0000_0000 + (words[at + 5] as number),
    hotPages: words[at + 7] as number,
    hotPercent: words[at + 8] as number,
    ledgerFirst: words[at + 9] as number,
    traceFirst: words[at + 10] as number,
    traceEntries: words[at + 11] as number,
    traceSum: words[at + 15] as number,
    dataFirst: words[at + 12] as number,
    dataPages: words[at + 13] as number,
    idlePages: words[at + 14] as number,
    ranges,
  };
}
