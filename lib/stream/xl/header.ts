/** The header that `xl save` and `xl migrate` write before the stream. */

import { setU32, u32 } from '../../bytes/le.js';
import { UsageError } from '../../errors.js';
import { NOWHERE, StreamErrorCode, type Place } from '../codes.js';
import { failAt } from '../fields.js';
import type { XlHeader } from '../events.js';
import {
  XL_BYTEORDER,
  XL_CONFIG_LENGTH_SIZE,
  XL_HEADER_SIZE,
  XL_MAGIC,
  XL_OPTIONAL_DATA_MAX,
  XlMandatoryFlag,
} from './constants.js';

export const XL_HEADER = 'xl header';

const MAGIC_SIZE = 32;

/** The fixed part of the header. */
export interface XlFixedHeader {
  readonly mandatoryFlags: number;
  readonly optionalFlags: number;
  /** Bytes of optional data that follow. */
  readonly optionalDataLength: number;
}

/**
 * Reads the fixed part.
 *
 *     offset  size  field
 *          0    32  magic
 *         32     4  byteorder            0x01020304
 *         36     4  mandatory_flags      1 config is JSON, 2 stream is v2
 *         40     4  optional_flags       0
 *         44     4  optional_data_len    n
 *         48     n  optional data
 *
 * Throws StreamFormatError: ID, ENDIANNESS, FLAGS, LIMIT; TRUNCATED for fewer than 48 bytes.
 */
export function decodeXlFixedHeader(bytes: Uint8Array, place: Place = NOWHERE): XlFixedHeader {
  const fail = failAt(place, XL_HEADER);
  if (bytes.length < XL_HEADER_SIZE) {
    throw fail(
      StreamErrorCode.TRUNCATED,
      bytes.length,
      undefined,
      `${bytes.length} of ${XL_HEADER_SIZE} bytes`,
    );
  }
  if (!XL_MAGIC.every((byte, i) => bytes[i] === byte)) {
    throw fail(StreamErrorCode.ID, 0, 'magic', 'wrong magic: not a file of xl, or damaged');
  }
  const byteorder = u32(bytes, MAGIC_SIZE);
  if (byteorder !== XL_BYTEORDER) {
    const reason = `0x${byteorder.toString(16).padStart(8, '0')} is not 0x01020304: written on a big-endian host, or damaged`;
    throw fail(StreamErrorCode.ENDIANNESS, MAGIC_SIZE, 'byteorder', reason);
  }
  const mandatoryFlags = u32(bytes, 36);
  const known = XlMandatoryFlag.JSON | XlMandatoryFlag.STREAM_V2;
  if ((mandatoryFlags & ~known) !== 0) {
    const reason = `0x${mandatoryFlags.toString(16)} has flags that only a newer xl knows`;
    throw fail(StreamErrorCode.FLAGS, 36, 'mandatoryFlags', reason);
  }
  const optionalDataLength = u32(bytes, 44);
  if (optionalDataLength > XL_OPTIONAL_DATA_MAX) {
    const reason = `${optionalDataLength} bytes are above the limit of ${XL_OPTIONAL_DATA_MAX}`;
    throw fail(StreamErrorCode.LIMIT, 44, 'optionalDataLength', reason);
  }
  return { mandatoryFlags, optionalFlags: u32(bytes, 40), optionalDataLength };
}

/**
 * Reads the whole header.
 *
 *     offset  size  field of the optional data (may be empty as a whole)
 *          0     4  config_len   m, with the configuration's NUL
 *          4     m  config       text; what follows it is ignored
 *
 * Throws as `decodeXlFixedHeader`, and FIELD if the configuration does not fit.
 */
export function decodeXlHeader(bytes: Uint8Array, place: Place = NOWHERE): XlHeader {
  const { optionalDataLength, ...flags } = decodeXlFixedHeader(bytes, place);
  const fail = failAt(place, XL_HEADER);
  const end = XL_HEADER_SIZE + optionalDataLength;
  if (bytes.length < end) {
    throw fail(StreamErrorCode.TRUNCATED, bytes.length, 'optionalData', `${bytes.length} of ${end} bytes`);
  }
  const optionalData = bytes.subarray(XL_HEADER_SIZE, end);
  if (optionalDataLength === 0) return { ...flags, optionalData, config: undefined };
  if (optionalDataLength < XL_CONFIG_LENGTH_SIZE) {
    const reason = `${optionalDataLength} bytes of optional data have no room for the configuration's length`;
    throw fail(StreamErrorCode.FIELD, 44, 'optionalDataLength', reason);
  }
  const configLength = u32(optionalData, 0);
  if (configLength > optionalDataLength - XL_CONFIG_LENGTH_SIZE) {
    const reason = `${configLength} does not fit in ${optionalDataLength} bytes of optional data`;
    throw fail(StreamErrorCode.FIELD, XL_HEADER_SIZE, 'configLength', reason);
  }
  const config = optionalData.subarray(XL_CONFIG_LENGTH_SIZE, XL_CONFIG_LENGTH_SIZE + configLength);
  return { ...flags, optionalData, config: configText(config) };
}

/** What `encodeXlHeader` takes. */
export interface XlHeaderParts {
  /** Default: 3 (JSON, v2 stream) with a configuration, 2 without. */
  readonly mandatoryFlags?: number;
  readonly optionalFlags?: number;
  /** All optional data as they shall stand in the file. Default: made from `config`. */
  readonly optionalData?: Uint8Array;
  /** The configuration as text, without NUL: xl's JSON. */
  readonly config?: string | undefined;
}

/** Writes the whole header, 48 + n bytes; the stream follows. Throws UsageError if the configuration is too long. */
export function encodeXlHeader(parts: XlHeaderParts): Uint8Array {
  const { config = '', optionalData = encodeConfig(config) } = parts;
  if (optionalData.length > XL_OPTIONAL_DATA_MAX) {
    throw new UsageError(`xl header with ${optionalData.length} bytes of optional data`);
  }
  const empty = parts.optionalData === undefined && config === '';
  const flags = XlMandatoryFlag.STREAM_V2 | (empty ? 0 : XlMandatoryFlag.JSON);
  const bytes = new Uint8Array(XL_HEADER_SIZE + optionalData.length);
  bytes.set(XL_MAGIC);
  setU32(bytes, MAGIC_SIZE, XL_BYTEORDER);
  setU32(bytes, 36, parts.mandatoryFlags ?? flags);
  setU32(bytes, 40, parts.optionalFlags ?? 0);
  setU32(bytes, 44, optionalData.length);
  bytes.set(optionalData, XL_HEADER_SIZE);
  return bytes;
}

/**
 * Parses a configuration that the flags call JSON.
 * Throws StreamFormatError (CONFIG) if it is no JSON object; `place` is the header's.
 */
export function parseXlConfig(config: string, place: Place = NOWHERE): Record<string, unknown> {
  let value: unknown;
  let cause: unknown;
  try {
    value = JSON.parse(config);
  } catch (error) {
    cause = error;
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value))
    return value as Record<string, unknown>;
  const why = cause instanceof Error ? cause.message : 'not an object';
  const fail = failAt(place, XL_HEADER);
  throw fail(
    StreamErrorCode.CONFIG,
    XL_HEADER_SIZE + XL_CONFIG_LENGTH_SIZE,
    'config',
    `not a JSON object: ${why}`,
  );
}

// Everything up to the NUL, as xl takes it; one that lacks its NUL is taken whole.
function configText(config: Uint8Array): string | undefined {
  const nul = config.indexOf(0);
  const text = new TextDecoder().decode(nul < 0 ? config : config.subarray(0, nul));
  return text === '' ? undefined : text;
}

function encodeConfig(config: string): Uint8Array {
  const text = config === '' ? new Uint8Array(0) : new TextEncoder().encode(`${config}\0`);
  const data = new Uint8Array(XL_CONFIG_LENGTH_SIZE + text.length);
  setU32(data, 0, text.length);
  data.set(text, XL_CONFIG_LENGTH_SIZE);
  return data;
}
