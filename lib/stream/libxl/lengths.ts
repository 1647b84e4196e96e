/** Which body lengths a libxl receiver refuses, by record type. */

import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode, type Place } from '../codes.js';
import { CHECKPOINT_STATE_SIZE, EMULATOR_HEADER_SIZE, libxlRecordName, LibxlRecord } from './constants.js';

const minimum = new Map<number, number>([
  [LibxlRecord.EMULATOR_XENSTORE_DATA, EMULATOR_HEADER_SIZE],
  [LibxlRecord.EMULATOR_CONTEXT, EMULATOR_HEADER_SIZE],
  [LibxlRecord.CHECKPOINT_STATE, CHECKPOINT_STATE_SIZE],
]);

/** The error of a body length that no record of this type can have, or undefined. `offset` in it: the length field's. */
export function libxlLengthProblem(
  type: number,
  length: number,
  place: Place,
): StreamFormatError | undefined {
  const least = minimum.get(type) ?? 0;
  if (length >= least) return undefined;
  return formatError(StreamErrorCode.LENGTH, `length ${length}, expected at least ${least}`, {
    offset: place.offset + 4,
    record: libxlRecordName(type),
    path: 'length',
  });
}

/** Throws what `libxlLengthProblem` finds. */
export function checkLibxlLength(type: number, body: Uint8Array, place: Place): void {
  const problem = libxlLengthProblem(type, body.length, place);
  if (problem !== undefined) throw problem;
}
