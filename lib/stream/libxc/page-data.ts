/**
 * The table of a PAGE_DATA record.
 *
 *     offset      size  field
 *          0         4  count     ≥ 1
 *          4         4  reserved
 *          8   8·count  entries: bits 63–60 page type, 59–52 reserved, 51–0 pfn
 *          …    4096·k  contents of the k pages whose type carries data, in the entries' order
 *
 * Entries are read as two 32-bit words into plain numbers: 52 bits are exact in a double, and this is several times as
 * fast as bigint.
 */

import { isKnownPageType, PAGE_SIZE, pageTypeHasData } from '../../abi/pages.js';
import { setU32, u32 } from '../../bytes/le.js';
import { UsageError, type StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode, type Place } from '../codes.js';
import { RECORD_HEADER_SIZE } from '../framing.js';
import {
  LibxcRecord,
  PAGE_DATA_ENTRY_SIZE,
  PAGE_DATA_HEAD_SIZE,
  PAGE_DATA_PFN_MAX,
  REC_LENGTH_MAX,
} from './constants.js';

const TWO_32 = 0x1_0000_0000;
const FIRST_CAPACITY = 1024;

/** Entries of one record, decoded as their bytes come, in arrays that the next record uses again. */
export class PageTable {
  pfns = new Float64Array(FIRST_CAPACITY);
  types = new Uint8Array(FIRST_CAPACITY);
  /** Entries decoded so far. */
  count = 0;
  /** Of them, those with data. */
  dataPages = 0;
  /** First entry with reserved bits that are not zero, or −1. */
  reservedBitsAt = -1;
  /** The pfns decoded so far follow each other, and all have one type. */
  run = true;
  #maxDataPages = 0;
  readonly #carry = new Uint8Array(PAGE_DATA_ENTRY_SIZE);
  #carried = 0;

  /** Starts a record with room for this many pages of data. */
  begin(maxDataPages: number): void {
    this.count = 0;
    this.dataPages = 0;
    this.reservedBitsAt = -1;
    this.run = true;
    this.#maxDataPages = maxDataPages;
    this.#carried = 0;
  }

  /** Decodes further bytes of the table. False at an entry that cannot be right: number `count`, not counted. */
  feed(bytes: Uint8Array): boolean {
    let from = 0;
    if (this.#carried > 0) {
      from = Math.min(PAGE_DATA_ENTRY_SIZE - this.#carried, bytes.length);
      this.#carry.set(bytes.subarray(0, from), this.#carried);
      this.#carried += from;
      if (this.#carried < PAGE_DATA_ENTRY_SIZE) return true;
      this.#carried = 0;
      if (!this.#decode(this.#carry, 0, 1)) return false;
    }
    const whole = Math.floor((bytes.length - from) / PAGE_DATA_ENTRY_SIZE);
    if (!this.#decode(bytes, from, whole)) return false;
    const rest = from + whole * PAGE_DATA_ENTRY_SIZE;
    this.#carried = bytes.length - rest;
    if (this.#carried > 0) this.#carry.set(bytes.subarray(rest));
    return true;
  }

  #decode(bytes: Uint8Array, offset: number, n: number): boolean {
    this.#reserve(this.count + n);
    this.run = this.run && this.#decodeRun(bytes, offset, n);
    if (this.run) return true;
    const { pfns, types } = this;
    let i = this.count;
    let data = this.dataPages;
    let good = true;
    for (const end = i + n; i < end; i++, offset += PAGE_DATA_ENTRY_SIZE) {
      const high = u32(bytes, offset + 4);
      const type = high >>> 28;
      if (pageTypeHasData(type)) {
        if ((type > 4 && type < 9) || data === this.#maxDataPages) {
          types[i] = type;
          good = false;
          break;
        }
        data++;
      }
      if ((high & 0x0ff0_0000) !== 0 && this.reservedBitsAt < 0) this.reservedBitsAt = i;
      pfns[i] = (high & 0x000f_ffff) * TWO_32 + u32(bytes, offset);
      types[i] = type;
    }
    this.count = i;
    this.dataPages = data;
    return good;
  }

  /**
   * Decodes entries that go on a run, as those of nearly all records do. Whole words and integers only: a quarter of the
   * time. Returns false, with nothing done, if they do not, or must be looked at more closely.
   */
  #decodeRun(bytes: Uint8Array, offset: number, n: number): boolean {
    if (!LITTLE_ENDIAN) return false;
    if (n === 0) return true;
    const words = entryWords(bytes, offset, n);
    const { pfns, types, count, dataPages } = this;
    const from = words[0] as number;
    const high = words[1] as number;
    const type = high >>> 28;
    const hasData = pageTypeHasData(type);
    if ((high & 0x0fff_ffff) !== 0 || from + n > TWO_32) return false;
    if (count > 0 && (pfns[count - 1] !== from - 1 || types[count - 1] !== type)) return false;
    if (hasData && (!isKnownPageType(type) || dataPages + n > this.#maxDataPages)) return false;
    for (let i = 1, word = 2; i < n; i++, word += 2) {
      if (((words[word] as number) | 0) !== ((from + i) | 0) || words[word + 1] !== high) return false;
    }
    for (let i = 0; i < n; i++) pfns[count + i] = from + i;
    types.fill(type, count, count + n);
    this.count = count + n;
    if (hasData) this.dataPages = dataPages + n;
    return true;
  }

  /** Says why `feed` returned false. `place` is the record's, `length` its body's, `count` its table's. */
  problem(place: Place, length: number, count: number): StreamFormatError {
    const i = this.count;
    const type = this.types[i] as number;
    const offset = place.offset + RECORD_HEADER_SIZE + PAGE_DATA_HEAD_SIZE + i * PAGE_DATA_ENTRY_SIZE;
    const record = 'PAGE_DATA';
    if (type > 4 && type < 9) {
      const reason = `page type 0x${type.toString(16)} does not exist`;
      return formatError(StreamErrorCode.PAGE_TYPE, reason, { offset, record, path: `pfns[${i}].type` });
    }
    const reason = `length ${length} with ${count} entries has no room for the data of more than ${this.dataPages} pages`;
    return formatError(StreamErrorCode.LENGTH, reason, { offset, record, path: `pfns[${i}]` });
  }

  #reserve(entries: number): void {
    if (entries <= this.pfns.length) return;
    const size = Math.max(entries, 2 * this.pfns.length);
    const pfns = new Float64Array(size);
    const types = new Uint8Array(size);
    pfns.set(this.pfns.subarray(0, this.count));
    types.set(this.types.subarray(0, this.count));
    this.pfns = pfns;
    this.types = types;
  }
}

/** `n` entries as words, in the machine's order. A copy only where they are not aligned. */
function entryWords(bytes: Uint8Array, offset: number, n: number): Uint32Array {
  const at = bytes.byteOffset + offset;
  if (at % 4 === 0) return new Uint32Array(bytes.buffer, at, 2 * n);
  const words = new Uint32Array(2 * n);
  new Uint8Array(words.buffer).set(bytes.subarray(offset, offset + PAGE_DATA_ENTRY_SIZE * n));
  return words;
}

/** Body length of a PAGE_DATA record. */
export function pageDataLength(count: number, dataPages: number): number {
  return PAGE_DATA_HEAD_SIZE + count * PAGE_DATA_ENTRY_SIZE + dataPages * PAGE_SIZE;
}

/** Bytes that `writePageDataHead` writes for this many entries. */
export function pageDataHeadSize(count: number): number {
  return RECORD_HEADER_SIZE + PAGE_DATA_HEAD_SIZE + count * PAGE_DATA_ENTRY_SIZE;
}

/**
 * Writes what stands before the page contents of a PAGE_DATA record: record header, count, and the table of the first
 * `count` entries of `pfns` and `types` (nibbles). The contents of the entries with data must follow, in order; there
 * is no padding.
 *
 * `into` is the caller's, to be used again for each batch; at least `pageDataHeadSize(count)` bytes. Returns how many
 * were written. Throws UsageError for no entries, a pfn that is no frame number, a record that would be too long.
 */
export function writePageDataHead(
  into: Uint8Array,
  pfns: ArrayLike<number>,
  types: ArrayLike<number>,
  count: number,
): number {
  const size = pageDataHeadSize(count);
  if (count < 1 || count > pfns.length || count > types.length || into.length < size) {
    throw new UsageError(`PAGE_DATA of ${count} entries: not so many given, or no room for ${size} bytes`);
  }
  const words = wordsOf(into, size);
  let dataPages = 0;
  let word = (RECORD_HEADER_SIZE + PAGE_DATA_HEAD_SIZE) / 4;
  for (let i = 0; i < count; i++, word += 2) {
    const pfn = pfns[i] as number;
    const type = types[i] as number;
    const low = pfn >>> 0;
    // Few guests have frames beyond 16 TiB.
    const high = low === pfn ? 0 : highWord(pfn);
    if (high < 0 || !(type >= 0 && type <= 0xf)) {
      throw new UsageError(`PAGE_DATA entry ${i}: pfn ${pfn}, type ${type}`);
    }
    words[word] = low;
    words[word + 1] = high | (type << 28);
    if (pageTypeHasData(type)) dataPages++;
  }
  const length = pageDataLength(count, dataPages);
  if (length > REC_LENGTH_MAX)
    throw new UsageError(`PAGE_DATA of ${length} bytes is longer than REC_LENGTH_MAX`);
  words[0] = LibxcRecord.PAGE_DATA;
  words[1] = length;
  words[2] = count;
  words[3] = 0;
  if (words.buffer !== into.buffer) words.forEach((value, i) => setU32(into, i * 4, value));
  return size;
}

/**
 * The same for `count` pfns in a row from `first` on that all have one type. Most batches are like that, and it takes a
 * quarter of the time.
 */
export function writePageDataRun(into: Uint8Array, first: number, type: number, count: number): number {
  const size = pageDataHeadSize(count);
  const length = pageDataLength(count, pageTypeHasData(type) ? count : 0);
  const last = first + count - 1;
  if (!(count >= 1 && first >= 0 && Number.isInteger(first) && last < TWO_32 && type >= 0 && type <= 0xf)) {
    throw new UsageError(`PAGE_DATA of ${count} entries from pfn ${first} on, type ${type}`);
  }
  if (into.length < size || length > REC_LENGTH_MAX) {
    throw new UsageError(`PAGE_DATA of ${count} entries: too long, or no room for ${size} bytes`);
  }
  const words = wordsOf(into, size);
  words[0] = LibxcRecord.PAGE_DATA;
  words[1] = length;
  words[2] = count;
  words[3] = 0;
  const high = type << 28;
  let word = (RECORD_HEADER_SIZE + PAGE_DATA_HEAD_SIZE) / 4;
  for (let pfn = first; pfn <= last; pfn++, word += 2) {
    words[word] = pfn;
    words[word + 1] = high;
  }
  if (words.buffer !== into.buffer) words.forEach((value, i) => setU32(into, i * 4, value));
  return size;
}

/** Bits 51–32 of a pfn, -1 if it is none. Its low word is `pfn >>> 0`. */
function highWord(pfn: number): number {
  return Number.isInteger(pfn) && pfn <= PAGE_DATA_PFN_MAX ? Math.floor(pfn / TWO_32) : -1;
}

const LITTLE_ENDIAN = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

/**
 * The first `size` bytes as words; other memory where they cannot be had so. Whole words, because a batch's table is
 * written for every 1024 pages of a guest, and byte by byte it takes four times as long.
 */
function wordsOf(bytes: Uint8Array, size: number): Uint32Array {
  if (LITTLE_ENDIAN && bytes.byteOffset % 4 === 0)
    return new Uint32Array(bytes.buffer, bytes.byteOffset, size / 4);
  return new Uint32Array(size / 4);
}
