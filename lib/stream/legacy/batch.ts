/**
 * The table of a page batch.
 *
 *     offset       size  field
 *          0          4  count      1 … 1024; the chunk id
 *          4    count·w  entries    words of the toolstack (w = 4 or 8): bits 31–28 page type, 27–0 pfn, the rest 0
 *          …     4096·k  contents of the k pages whose type carries data, in the entries' order; in a compressed
 *                        checkpoint none, they come in COMPRESSED_DATA
 *
 * Entries of exactly 0xf0000000 stand for frames whose pfn the writer has lost (xc_domain_save.c).
 */

import { isKnownPageType, PageType } from '../../abi/pages.js';
import { u32 } from '../../bytes/le.js';
import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../codes.js';
import { LEGACY_BATCH_MAX, LegacyPart } from './constants.js';

const ID_SIZE = 4;
const PFN_MASK = 0x0fff_ffff;

/** Entries of one batch, in arrays that the next batch uses again. */
export class LegacyBatchTable {
  readonly pfns = new Float64Array(LEGACY_BATCH_MAX);
  readonly types = new Uint8Array(LEGACY_BATCH_MAX);
  /** Entries that are good: all of them, or those before the problem. */
  count = 0;
  /** Of all entries, those with data. */
  dataPages = 0;
  /** The pfns follow each other, and all have one type. */
  run = false;

  /**
   * Decodes a whole table. Returns why a receiver would have to refuse it; `dataPages` is right even then, so that the
   * framing stays readable.
   *
   * @param offset of the batch's id
   */
  decode(bytes: Uint8Array, wordSize: 4 | 8, p2mSize: number, offset: number): StreamFormatError | undefined {
    const n = bytes.length / wordSize;
    const { pfns, types } = this;
    let ascending = true;
    let uniform = true;
    let data = 0;
    let before = -1;
    let badAt = -1;
    const firstWord = u32(bytes, 0);
    for (let i = 0, at = 0; i < n; i++, at += wordSize) {
      const word = u32(bytes, at);
      const pfn = word & PFN_MASK;
      const type = word >>> 28;
      pfns[i] = pfn;
      types[i] = type;
      if (type < PageType.BROKEN) data++;
      if (word !== firstWord + i) uniform = false;
      if (pfn <= before) ascending = false;
      before = pfn;
      if (
        (wordSize === 8 && u32(bytes, at + 4) !== 0) ||
        (type > 4 && type < 9) ||
        (pfn >= p2mSize && !isLost(word))
      ) {
        if (badAt < 0) badAt = i;
      }
    }
    this.count = n;
    this.dataPages = data;
    this.run = uniform && types[n - 1] === firstWord >>> 28;
    if (badAt >= 0) {
      this.count = badAt;
      return this.#problem(bytes, wordSize, p2mSize, offset, badAt);
    }
    if (ascending) return undefined;
    const twice = firstTwice(bytes, wordSize, n);
    if (twice < 0) return undefined;
    this.count = twice;
    return problemAt(
      offset,
      wordSize,
      twice,
      StreamErrorCode.DUPLICATE,
      `pfn ${pfns[twice] as number} stands twice`,
    );
  }

  #problem(
    bytes: Uint8Array,
    wordSize: number,
    p2mSize: number,
    offset: number,
    i: number,
  ): StreamFormatError {
    const pfn = this.pfns[i] as number;
    const type = this.types[i] as number;
    const at = i * wordSize;
    if (wordSize === 8 && u32(bytes, at + 4) !== 0) {
      const reason = `0x${(u32(bytes, at + 4) * 2 ** 32 + u32(bytes, at)).toString(16)} is no pfn and type`;
      return problemAt(offset, wordSize, i, StreamErrorCode.FIELD, reason);
    }
    if (!isKnownPageType(type)) {
      const reason = `page type 0x${type.toString(16)} does not exist`;
      return problemAt(offset, wordSize, i, StreamErrorCode.PAGE_TYPE, reason);
    }
    const reason = `pfn ${pfn} is not below the guest's p2m_size ${p2mSize}`;
    return problemAt(offset, wordSize, i, StreamErrorCode.FIELD, reason);
  }
}

/** True for an entry that stands for nothing. */
function isLost(word: number): boolean {
  return word === 0xf000_0000;
}

/** True if the entry is one of those with a lost pfn. */
export function isLostEntry(pfn: number, type: number): boolean {
  return pfn === 0 && type === PageType.XTAB;
}

/** First entry that stands a second time, lost ones aside; −1 if none does. */
function firstTwice(bytes: Uint8Array, wordSize: number, n: number): number {
  const seen = new Set<number>();
  for (let i = 0; i < n; i++) {
    const word = u32(bytes, i * wordSize);
    if (isLost(word)) continue;
    if (seen.has(word)) return i;
    seen.add(word);
  }
  return -1;
}

function problemAt(
  offset: number,
  wordSize: number,
  i: number,
  code: StreamErrorCode,
  reason: string,
): StreamFormatError {
  const at = offset + ID_SIZE + i * wordSize;
  return formatError(code, reason, { offset: at, record: LegacyPart.PAGE_BATCH, path: `pfns[${i}]` });
}
