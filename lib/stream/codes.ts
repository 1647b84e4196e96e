/** Why a stream was refused: the `code` of a StreamFormatError. One code for each reason; the list only ever grows. */

import { StreamFormatError, type StreamPlace } from '../errors.js';

export const StreamErrorCode = {
  /** The bytes end inside the stream. `offset` is where they end. */
  TRUNCATED: 'ERR_XEN_STREAM_TRUNCATED',
  /** None of the formats that the reader knows. */
  FORMAT: 'ERR_XEN_STREAM_FORMAT',
  /** A legacy (v1) stream, or xend's: has to be converted first. */
  LEGACY: 'ERR_XEN_STREAM_LEGACY',
  /** The libxc image header does not begin with 64 one bits. */
  MARKER: 'ERR_XEN_STREAM_MARKER',
  /** A header's id, ident or magic is not its format's. */
  ID: 'ERR_XEN_STREAM_ID',
  /** A version that this library does not read. */
  VERSION: 'ERR_XEN_STREAM_VERSION',
  /** Written in big-endian byte order. */
  ENDIANNESS: 'ERR_XEN_STREAM_ENDIANNESS',
  /** A mandatory flag that this library does not know. */
  FLAGS: 'ERR_XEN_STREAM_FLAGS',
  /** Neither an x86 PV nor an x86 HVM guest. */
  GUEST_TYPE: 'ERR_XEN_STREAM_GUEST_TYPE',
  /** Pages are not 4096 bytes. */
  PAGE_SHIFT: 'ERR_XEN_STREAM_PAGE_SHIFT',
  /** A body length that cannot be right for its record. */
  LENGTH: 'ERR_XEN_STREAM_LENGTH',
  /** Larger than the library takes, whatever it holds. */
  LIMIT: 'ERR_XEN_STREAM_LIMIT',
  /** A field's value is out of its range or contradicts another one. */
  FIELD: 'ERR_XEN_STREAM_FIELD',
  /** A page type that does not exist. */
  PAGE_TYPE: 'ERR_XEN_STREAM_PAGE_TYPE',
  /** A reserved field or bit is not zero. Receivers ignore it; verifiers report it. */
  RESERVED: 'ERR_XEN_STREAM_RESERVED',
  /** Padding is not zero. Receivers ignore it; verifiers report it. */
  PADDING: 'ERR_XEN_STREAM_PADDING',
  /** A record of an unknown type that must not be skipped, or one that this kind of guest cannot have. */
  TYPE: 'ERR_XEN_STREAM_TYPE',
  /** A record that was planned and never used: TOOLSTACK. */
  DEPRECATED: 'ERR_XEN_STREAM_DEPRECATED',
  /** A record where it may not stand. */
  ORDER: 'ERR_XEN_STREAM_ORDER',
  /** A record that may stand only once. */
  DUPLICATE: 'ERR_XEN_STREAM_DUPLICATE',
  /** A record that must be there is not. */
  MISSING: 'ERR_XEN_STREAM_MISSING',
  /** The xl configuration is not what the header's flags say. */
  CONFIG: 'ERR_XEN_STREAM_CONFIG',
  /** Bytes after the end of the stream. */
  TRAILING: 'ERR_XEN_STREAM_TRAILING',
  /** Made from a legacy stream by a converter. A remark of verifiers. */
  CONVERTED: 'ERR_XEN_STREAM_CONVERTED',
  /** A legacy stream has tmem pools, and what was chosen for them does not cover these; verifiers remark on it. */
  TMEM: 'ERR_XEN_STREAM_TMEM',
} as const;

export type StreamErrorCode = (typeof StreamErrorCode)[keyof typeof StreamErrorCode];

/** Where a header or record begins; what every decoder is told so that its errors can say where. */
export interface Place {
  /** Byte offset of the header, or of the record's header, from the start of the stream. */
  readonly offset: number;
}

/** Place of a decoder that was told none. */
export const NOWHERE: Place = { offset: 0 };

/** A StreamFormatError with one of the codes above. `offset` is that of the offending field. */
export function formatError(code: StreamErrorCode, reason: string, where: StreamPlace): StreamFormatError {
  return new StreamFormatError(code, reason, where);
}
