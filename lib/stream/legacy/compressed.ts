/**
 * Page contents of a compressed Remus checkpoint (COMPRESSED_DATA), as xc_compression.c of Xen 4.2 to 4.5 wrote them.
 * Batches of such a checkpoint hold pfns alone. The contents of all its chunks, one after the other, are a delta for each
 * entry with data, in the order of the batches.
 *
 *     size  delta
 *        1  0x00: the page is as it was
 *     4097  0x80, then the whole page
 *        …  runs, until they cover 4096 bytes: a marker, bit 7 set to leave what is there, clear to replace it; bits 6–0:
 *           so many words of 32 bits, at least 1; to replace, their bytes follow
 *
 * The page that a delta changes is the receiver's: what the checkpoints before have made of it, zeros at first. Senders
 * never split a delta over two chunks, but nothing in the format forbids it.
 */

import { PAGE_SIZE } from '../../abi/pages.js';
import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../codes.js';
import { LegacyChunk, legacyChunkName } from './constants.js';

const UNCHANGED = 0x00;
const WHOLE = 0x80;
const SKIP_BIT = 0x80;
const WORDS = 0x7f;
const WORD_SIZE = 4;

/** Longest delta that can be: a marker for each word. */
export const LEGACY_DELTA_SIZE_MAX = PAGE_SIZE + PAGE_SIZE / WORD_SIZE;

/**
 * Bytes of the delta that begins at `at`; 0 if `bytes` end before it does.
 *
 * Throws StreamFormatError: FIELD for a run of no words, LENGTH for runs beyond the page's end.
 *
 * @param offset in the stream of `bytes[0]`, for errors
 */
export function deltaSize(bytes: Uint8Array, at: number, offset = 0): number {
  if (at >= bytes.length) return 0;
  const first = bytes[at] as number;
  if (first === UNCHANGED) return 1;
  if (first === WHOLE) return at + 1 + PAGE_SIZE <= bytes.length ? 1 + PAGE_SIZE : 0;
  let to = at;
  for (let covered = 0; covered < PAGE_SIZE;) {
    if (to >= bytes.length) return 0;
    const marker = bytes[to] as number;
    const size = (marker & WORDS) * WORD_SIZE;
    if (size === 0 || covered + size > PAGE_SIZE) throw badRun(size, covered, offset + to);
    to += (marker & SKIP_BIT) === 0 ? 1 + size : 1;
    if (to > bytes.length) return 0;
    covered += size;
  }
  return to - at;
}

/**
 * Changes a page by the delta that begins at `at`. Returns where the next one begins.
 *
 * Throws StreamFormatError as `deltaSize`, and LENGTH for a delta that is not whole; then part of the page may have been
 * changed.
 *
 * @param page 4096 bytes
 * @param offset in the stream of `bytes[0]`, for errors
 */
export function applyDelta(page: Uint8Array, bytes: Uint8Array, at: number, offset = 0): number {
  if (at >= bytes.length) throw cutOff(0, offset + at);
  const first = bytes[at] as number;
  if (first === UNCHANGED) return at + 1;
  if (first === WHOLE) {
    const end = at + 1 + PAGE_SIZE;
    if (end > bytes.length) throw cutOff(bytes.length - at, offset + at);
    page.set(bytes.subarray(at + 1, end));
    return end;
  }
  let from = at;
  for (let covered = 0; covered < PAGE_SIZE;) {
    if (from >= bytes.length) throw cutOff(bytes.length - at, offset + at);
    const marker = bytes[from] as number;
    const size = (marker & WORDS) * WORD_SIZE;
    if (size === 0 || covered + size > PAGE_SIZE) throw badRun(size, covered, offset + from);
    from++;
    if ((marker & SKIP_BIT) === 0) {
      if (from + size > bytes.length) throw cutOff(bytes.length - at, offset + at);
      page.set(bytes.subarray(from, from + size), covered);
      from += size;
    }
    covered += size;
  }
  return from;
}

/**
 * Whether the compressed data of a checkpoint has a delta for each page of its batches, and no more: counts, and looks at
 * lengths alone, so that it needs no pages. Never holds more than one delta.
 */
export class DeltaCheck {
  /** Of a delta that a chunk left unfinished. */
  #rest = new Uint8Array(0);
  #restOffset = 0;
  /** Deltas that are complete. */
  deltas = 0;
  /** Of them, those that leave the page as it is, and those that are a whole page. */
  unchanged = 0;
  whole = 0;

  /** Bytes of a delta that is not complete. */
  get unfinished(): number {
    return this.#rest.length;
  }

  /**
   * Takes the contents of the next chunk. Throws StreamFormatError as `deltaSize`: what follows in this checkpoint cannot be
   * told apart any more.
   *
   * @param offset in the stream of `bytes[0]`
   */
  feed(bytes: Uint8Array, offset: number): void {
    let at = 0;
    if (this.#rest.length > 0) {
      // One delta never needs more than this; where it ends is in what it has itself.
      const have = this.#rest.length;
      const more = bytes.subarray(0, LEGACY_DELTA_SIZE_MAX - have);
      const joined = new Uint8Array(have + more.length);
      joined.set(this.#rest);
      joined.set(more, have);
      const size = deltaSize(joined, 0, this.#restOffset);
      if (size === 0) {
        this.#rest = joined;
        return;
      }
      this.#count(joined, 0);
      at = size - have;
    }
    for (;;) {
      const size = deltaSize(bytes, at, offset);
      if (size === 0) break;
      this.#count(bytes, at);
      at += size;
    }
    this.#rest = bytes.slice(at);
    this.#restOffset = offset + at;
  }

  /** A new checkpoint begins. */
  reset(): void {
    this.#rest = new Uint8Array(0);
    this.deltas = 0;
    this.unchanged = 0;
    this.whole = 0;
  }

  #count(bytes: Uint8Array, at: number): void {
    this.deltas++;
    if (bytes[at] === UNCHANGED) this.unchanged++;
    else if (bytes[at] === WHOLE) this.whole++;
  }
}

const record = legacyChunkName(LegacyChunk.COMPRESSED_DATA);

function badRun(size: number, covered: number, offset: number): StreamFormatError {
  const where = { offset, record, path: 'runs' };
  if (size === 0) return formatError(StreamErrorCode.FIELD, 'a run of no words', where);
  const reason = `a run of ${size} bytes at ${covered} goes beyond the page`;
  return formatError(StreamErrorCode.LENGTH, reason, where);
}

function cutOff(have: number, offset: number): StreamFormatError {
  const reason = `the data ends ${have === 0 ? 'before' : `${have} bytes into`} the change of a page`;
  return formatError(StreamErrorCode.LENGTH, reason, { offset, record, path: 'runs' });
}
