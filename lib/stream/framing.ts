/**
 * The frame that libxc and libxl records share.
 *
 *     offset  size  field
 *          0     4  type
 *          4     4  body_length: exact, without padding
 *          8     n  body
 *        8+n   0–7  padding to a multiple of 8: zero when written, ignored when read
 */

import { setU32, u32 } from '../bytes/le.js';
import { UsageError } from '../errors.js';
import { REC_LENGTH_MAX } from './libxc/constants.js';

/** Bytes of a record's header. */
export const RECORD_HEADER_SIZE = 8;

/** Records begin at multiples of this. */
export const RECORD_ALIGN = 8;

export interface RecordHeader {
  readonly type: number;
  /** Bytes of the body, without padding. */
  readonly length: number;
}

/** A length rounded up to the next record boundary. */
export function roundUp(length: number): number {
  return Math.ceil(length / RECORD_ALIGN) * RECORD_ALIGN;
}

/** Reads the 8 bytes of a record's header. Any value is possible; limits are the reader's. */
export function decodeRecordHeader(bytes: Uint8Array, offset = 0): RecordHeader {
  return { type: u32(bytes, offset), length: u32(bytes, offset + 4) };
}

/** Writes a record's header into `into`. Returns 8, the bytes written. */
export function writeRecordHeader(into: Uint8Array, offset: number, type: number, length: number): 8 {
  setU32(into, offset, type);
  setU32(into, offset + 4, length);
  return 8;
}

const ZEROS = new Uint8Array(RECORD_ALIGN);

/** The padding after a body of this length: a shared view of 0…7 zero bytes, not to be written to. */
export function recordPadding(length: number): Uint8Array {
  return ZEROS.subarray(0, roundUp(length) - length);
}

/**
 * A whole record, header, body and padding, in one new array.
 * Throws UsageError if it would be longer than a receiver takes.
 */
export function encodeRecord(type: number, body: Uint8Array = ZEROS.subarray(0, 0)): Uint8Array {
  checkEncodedLength(body.length);
  const record = new Uint8Array(RECORD_HEADER_SIZE + roundUp(body.length));
  writeRecordHeader(record, 0, type, body.length);
  record.set(body, RECORD_HEADER_SIZE);
  return record;
}

/**
 * A whole record as views to write one after the other, its body not copied: header, body, padding (empty ones left
 * out). Throws UsageError as `encodeRecord`.
 */
export function recordViews(type: number, body: Uint8Array): Uint8Array[] {
  checkEncodedLength(body.length);
  const header = new Uint8Array(RECORD_HEADER_SIZE);
  writeRecordHeader(header, 0, type, body.length);
  return [header, body, recordPadding(body.length)].filter((view) => view.length > 0);
}

// Xen's sender tests the length with its padding, so that no receiver is asked for more than it takes.
function checkEncodedLength(length: number): void {
  if (roundUp(length) > REC_LENGTH_MAX) {
    throw new UsageError(
      `a record body of ${length} bytes is longer than REC_LENGTH_MAX (${REC_LENGTH_MAX})`,
    );
  }
}
