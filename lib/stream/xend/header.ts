/** The head of a file of `xm save`, which is also what `xm migrate` sends: signature, configuration. */

import { setU32be, u32be } from '../../bytes/le.js';
import { UsageError } from '../../errors.js';
import { NOWHERE, StreamErrorCode, type Place } from '../codes.js';
import { failAt } from '../fields.js';
import { XEND_CONFIG_MAX, XEND_HEADER_SIZE, XEND_SIGNATURE } from './constants.js';

export const XEND_HEADER = 'xend header';

/** What stands before the legacy stream. */
export interface XendHeader {
  /** The configuration's bytes as they stand in the file: for `parseSxp`, or to be kept beside the image. */
  readonly config: Uint8Array;
  /** Byte offset of `config`, and of the legacy stream after it, from the start of the stream. */
  readonly configOffset: number;
  readonly streamOffset: number;
}

/**
 * Reads the fixed part.
 *
 *     offset  size  field
 *          0    16  signature    "LinuxGuestRecord", without terminator
 *         16     4  config_len   n, a signed big-endian number
 *         20     n  config       SXP, see `decodeXendHeader`
 *
 * Returns n. Throws StreamFormatError: ID, FIELD, LIMIT; TRUNCATED for fewer than 20 bytes.
 */
export function decodeXendFixedHeader(bytes: Uint8Array, place: Place = NOWHERE): number {
  const fail = failAt(place, XEND_HEADER);
  if (bytes.length < XEND_HEADER_SIZE) {
    const reason = `${bytes.length} of ${XEND_HEADER_SIZE} bytes`;
    throw fail(StreamErrorCode.TRUNCATED, bytes.length, undefined, reason);
  }
  if (!XEND_SIGNATURE.every((byte, i) => bytes[i] === byte)) {
    throw fail(StreamErrorCode.ID, 0, 'signature', 'wrong signature: not a file of xend, or damaged');
  }
  const length = u32be(bytes, 16) | 0;
  if (length <= 0) throw fail(StreamErrorCode.FIELD, 16, 'configLength', `${length} is no length`);
  if (length > XEND_CONFIG_MAX) {
    const reason = `${length} bytes are above the limit of ${XEND_CONFIG_MAX}`;
    throw fail(StreamErrorCode.LIMIT, 16, 'configLength', reason);
  }
  return length;
}

/**
 * Reads the whole head.
 *
 *     offset  size  field
 *          0    20  fixed part   as above
 *         20     n  config       SXP, without terminator
 *       20+n        stream       legacy libxc stream; behind it for HVM "QemuDeviceModelRecord" and QEMU's state, to
 *                                the end of the file
 *
 * Throws as `decodeXendFixedHeader`.
 */
export function decodeXendHeader(bytes: Uint8Array, place: Place = NOWHERE): XendHeader {
  const end = XEND_HEADER_SIZE + decodeXendFixedHeader(bytes, place);
  if (bytes.length < end) {
    const reason = `${bytes.length} of ${end} bytes`;
    throw failAt(place, XEND_HEADER)(StreamErrorCode.TRUNCATED, bytes.length, 'config', reason);
  }
  return {
    config: bytes.subarray(XEND_HEADER_SIZE, end),
    configOffset: place.offset + XEND_HEADER_SIZE,
    streamOffset: place.offset + end,
  };
}

/** Writes the head; the legacy stream follows. Throws UsageError if the configuration is empty or too long. */
export function encodeXendHeader(config: Uint8Array): Uint8Array {
  if (config.length === 0 || config.length > XEND_CONFIG_MAX) {
    throw new UsageError(`xend header with a configuration of ${config.length} bytes`);
  }
  const bytes = new Uint8Array(XEND_HEADER_SIZE + config.length);
  bytes.set(XEND_SIGNATURE);
  setU32be(bytes, 16, config.length);
  bytes.set(config, XEND_HEADER_SIZE);
  return bytes;
}
