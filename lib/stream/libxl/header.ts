/** The header of a libxl stream. */

import { setU32be, setU64be, u32be, u64be } from '../../bytes/le.js';
import type { StreamFormatError } from '../../errors.js';
import { formatError, NOWHERE, StreamErrorCode, type Place } from '../codes.js';
import type { LibxlHeader } from '../events.js';
import { LIBXL_HEADER_SIZE, LIBXL_IDENT, LIBXL_OPT_BIG_ENDIAN, LIBXL_VERSION } from './constants.js';

export const LIBXL_HEADER = 'libxl header';

/**
 * Reads the stream header. All of it is big-endian.
 *
 *     offset  size  field
 *          0     8  ident    "LibxlFmt"
 *          8     4  version  2
 *         12     4  options  bit 0: what follows is big-endian; bit 1: converted from a legacy stream
 *
 * Throws StreamFormatError: ID, VERSION, ENDIANNESS; TRUNCATED for fewer than 16 bytes.
 */
export function decodeLibxlHeader(bytes: Uint8Array, place: Place = NOWHERE): LibxlHeader {
  const fail = (
    code: StreamErrorCode,
    at: number,
    path: string | undefined,
    reason: string,
  ): StreamFormatError =>
    formatError(code, reason, { offset: place.offset + at, record: LIBXL_HEADER, path });

  if (bytes.length < LIBXL_HEADER_SIZE) {
    throw fail(
      StreamErrorCode.TRUNCATED,
      bytes.length,
      undefined,
      `${bytes.length} of ${LIBXL_HEADER_SIZE} bytes`,
    );
  }
  if (u64be(bytes, 0) !== LIBXL_IDENT) throw fail(StreamErrorCode.ID, 0, 'ident', 'is not "LibxlFmt"');
  const version = u32be(bytes, 8);
  if (version !== LIBXL_VERSION)
    throw fail(StreamErrorCode.VERSION, 8, 'version', `version ${version} is not 2`);
  const options = u32be(bytes, 12);
  if ((options & LIBXL_OPT_BIG_ENDIAN) !== 0) {
    throw fail(StreamErrorCode.ENDIANNESS, 12, 'options', 'big-endian streams are not supported');
  }
  return { version, options };
}

/** Writes a stream header; version 2 without options unless told otherwise. 16 bytes. */
export function encodeLibxlHeader(header: Partial<LibxlHeader> = {}): Uint8Array {
  const bytes = new Uint8Array(LIBXL_HEADER_SIZE);
  setU64be(bytes, 0, LIBXL_IDENT);
  setU32be(bytes, 8, header.version ?? LIBXL_VERSION);
  setU32be(bytes, 12, header.options ?? 0);
  return bytes;
}
