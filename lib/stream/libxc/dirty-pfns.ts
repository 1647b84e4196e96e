/** CHECKPOINT_DIRTY_PFN_LIST, the one libxc record of COLO's back channel (secondary to primary). */

import { isZero, setU64n, u32, u64, u64n } from '../../bytes/le.js';
import { NOWHERE, type Place } from '../codes.js';
import { checkUint, fieldError } from '../fields.js';
import { decodeRecordHeader, RECORD_HEADER_SIZE } from '../framing.js';
import { CHECKPOINT_STATE_SIZE, LibxlRecord } from '../libxl/constants.js';
import { DIRTY_PFN_SIZE, LibxcRecord, PAGE_DATA_PFN_MAX } from './constants.js';
import { checkLibxcLength } from './lengths.js';

/**
 * Reads CHECKPOINT_DIRTY_PFN_LIST: a u64 for each pfn.
 * Throws StreamFormatError: LENGTH; FIELD for a number that no pfn can be. The guest's size is the caller's to check.
 */
export function decodeDirtyPfnList(body: Uint8Array, place: Place = NOWHERE): Float64Array {
  checkLibxcLength(LibxcRecord.CHECKPOINT_DIRTY_PFN_LIST, body, place);
  const pfns = new Float64Array(body.length / DIRTY_PFN_SIZE);
  for (let i = 0; i < pfns.length; i++) {
    const at = i * DIRTY_PFN_SIZE;
    if (u32(body, at + 4) >= 0x10_0000) {
      const reason = `0x${u64(body, at).toString(16)} is no pfn`;
      throw fieldError(place, 'CHECKPOINT_DIRTY_PFN_LIST', `pfns[${i}]`, at, reason);
    }
    pfns[i] = u64n(body, at);
  }
  return pfns;
}

/** Writes a CHECKPOINT_DIRTY_PFN_LIST body. Its record header has 8 bytes, as the specification says. */
export function encodeDirtyPfnList(pfns: ArrayLike<number>): Uint8Array {
  const body = new Uint8Array(pfns.length * DIRTY_PFN_SIZE);
  for (let i = 0; i < pfns.length; i++) {
    setU64n(body, i * DIRTY_PFN_SIZE, checkUint(pfns[i] as number, PAGE_DATA_PFN_MAX, 'pfn'));
  }
  return body;
}

/** What `resolveDirtyPfnList` found. */
export interface ResolvedDirtyPfnList {
  /** `exact`: as specified. `shifted`: behind a 16-byte header. `unknown`: neither can be seen. */
  readonly variant: 'exact' | 'shifted' | 'unknown';
  /** The list proper, to be given to `decodeDirtyPfnList`. */
  readonly body: Uint8Array;
  /** True if `next` belongs to the list; else it is the header of the libxl record after it. */
  readonly nextIsBody: boolean;
}

/**
 * Tells apart the two forms in which stock secondaries write the list, for a reader that wants to take both.
 *
 * From Xen 4.18 on they write the record header with 16 bytes instead of 8: type, length, and a pointer's worth of
 * zeros that `length` does not count. So the `length` bytes after the first 8 are a zero and all pfns but the last, and
 * the last pfn is where the next libxl record should be.
 *
 * `body`: the `length` bytes after an 8-byte header. `next`: the 8 bytes after those. On the back channel a
 * CHECKPOINT_STATE record follows the list, so `next` is either that record's header or the list's last pfn. A list of
 * no pfns is told by `next` being zero.
 */
export function resolveDirtyPfnList(body: Uint8Array, next: Uint8Array): ResolvedDirtyPfnList {
  const { type, length } = decodeRecordHeader(next);
  if (type === LibxlRecord.CHECKPOINT_STATE && length === CHECKPOINT_STATE_SIZE) {
    return { variant: 'exact', body, nextIsBody: false };
  }
  const wide = new Uint8Array(body.length + RECORD_HEADER_SIZE);
  wide.set(body);
  wide.set(next.subarray(0, RECORD_HEADER_SIZE), body.length);
  if (!isZero(wide, 0, RECORD_HEADER_SIZE)) return { variant: 'unknown', body, nextIsBody: false };
  return { variant: 'shifted', body: wide.subarray(RECORD_HEADER_SIZE), nextIsBody: true };
}
