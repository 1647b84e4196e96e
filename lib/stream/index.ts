/**
 * The Migration v2 stream formats, and the legacy one before them, without I/O: incremental readers that turn bytes into
 * events, pure decoders for every header and record, encoders for those of v2, and the numbers they are made of. Public
 * surface of `xen-migration/stream`.
 *
 * @module
 */

export * from './events.js';
export { formatError, StreamErrorCode, type Place } from './codes.js';
export { type ReaderOptions } from './reader-base.js';
export { StreamReader, type StreamReaderOptions } from './stream-reader.js';
export { recogniseFormat, RECOGNISE_SIZE, type RecognisedFormat, type StreamFormat } from './recognise.js';
export {
  decodeRecordHeader,
  encodeRecord,
  RECORD_ALIGN,
  RECORD_HEADER_SIZE,
  recordPadding,
  recordViews,
  writeRecordHeader,
  type RecordHeader,
} from './framing.js';
export { readStream, type ReadStreamOptions } from './read-stream.js';

export * from './libxc/constants.js';
export * from './libxc/headers.js';
export { libxcLengthProblem } from './libxc/lengths.js';
export { pageDataHeadSize, pageDataLength, writePageDataHead } from './libxc/page-data.js';
export * from './libxc/pv.js';
export * from './libxc/x86.js';
export * from './libxc/hvm.js';
export * from './libxc/dirty-pfns.js';
export { LibxcReader } from './libxc/reader.js';

export * from './libxl/constants.js';
export * from './libxl/header.js';
export { libxlLengthProblem } from './libxl/lengths.js';
export * from './libxl/records.js';
export { LibxlReader, type LibxlReaderOptions } from './libxl/reader.js';

export * from './xl/constants.js';
export * from './xl/header.js';
export { XlReader, type XlReaderOptions } from './xl/reader.js';

export * from './legacy/constants.js';
export type * from './legacy/events.js';
export {
  decodeExtendedInfo,
  decodeLegacyParam,
  decodeLegacyTscInfo,
  decodeLegacyVcpuInfo,
  decodeMagicPfns,
  decodeToolstack,
  type LegacyExtendedInfo,
  type LegacyPhysmap,
  type LegacyVcpuInfo,
} from './legacy/decode.js';
export { applyDelta, deltaSize, LEGACY_DELTA_SIZE_MAX } from './legacy/compressed.js';
export { LegacyReader, type LegacyReaderOptions } from './legacy/reader.js';

export * from './xend/constants.js';
export * from './xend/header.js';
export { XendReader } from './xend/reader.js';

export * from './verify/index.js';
export * from './inspect/index.js';
