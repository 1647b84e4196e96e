/** Small helpers of the record decoders and encoders. */

import { UsageError, type StreamFormatError } from '../errors.js';
import { formatError, StreamErrorCode, type Place } from './codes.js';
import { RECORD_HEADER_SIZE } from './framing.js';

/** The error of a field at byte `at` of a record's body. */
export function fieldError(
  place: Place,
  record: string,
  path: string,
  at: number,
  reason: string,
  code: StreamErrorCode = StreamErrorCode.FIELD,
): StreamFormatError {
  return formatError(code, reason, { offset: place.offset + RECORD_HEADER_SIZE + at, record, path });
}

/** Makes the errors of fields that are told by their offset from a header's first byte. */
export type Fail = (
  code: StreamErrorCode,
  at: number,
  path: string | undefined,
  reason: string,
) => StreamFormatError;

/** Errors of one header, which begins at `place`. */
export function failAt(place: Place, record: string): Fail {
  return (code, at, path, reason) => formatError(code, reason, { offset: place.offset + at, record, path });
}

/** The value, if it is an integer of 0…max; else throws UsageError. Encoders must not write a truncated number. */
export function checkUint(value: number, max: number, what: string): number {
  if (!Number.isInteger(value) || value < 0 || value > max)
    throw new UsageError(`${what}: ${value} is not in 0…${max}`);
  return value;
}

/** As `checkUint`, for a u32. */
export function checkU32(value: number, what: string): number {
  return checkUint(value, 0xffff_ffff, what);
}

/** As `checkUint`, for a u64. */
export function checkU64(value: bigint, what: string): bigint {
  if (BigInt.asUintN(64, value) !== value) throw new UsageError(`${what}: ${value} is not in 0…2^64 − 1`);
  return value;
}

/** Throws StreamFormatError (LIMIT) if a table has more entries than are decoded into objects. */
export function checkTableLimit(place: Place, record: string, entries: number, limit: number): void {
  if (entries <= limit) return;
  throw fieldError(
    place,
    record,
    'length',
    -4,
    `${entries} entries, the limit is ${limit}`,
    StreamErrorCode.LIMIT,
  );
}
