/**
 * Compression of a stream on its way: a sink that compresses into another, a source that decompresses from another.
 *
 * What stands on the wire (docs/reference/compression.md) is exactly delimited: whoever reads it reads no byte beyond its end, so that other things can
 * follow on the same connection.
 *
 * | off | size | field                                                                     |
 * |-----|------|---------------------------------------------------------------------------|
 * | 0   | 4    | n, little-endian: bytes of the algorithm's data that follow, 1…1048576     |
 * | 4   | n    | data of the algorithm: all blocks together are one gzip, brotli or zstd stream |
 *
 * and so on, until a block with n = 0, which ends it all:
 *
 * | off | size | field                                               |
 * |-----|------|-----------------------------------------------------|
 * | 0   | 4    | 0                                                   |
 * | 4   | 8    | little-endian: bytes of the stream, uncompressed    |
 */
import { CompressingSink } from './compress-sink.js';
import { DecompressingSource } from './decompress-source.js';
import type { ByteSink, ByteSource } from './types.js';

export { compressionsHere, COMPRESSIONS, type Compression } from './compression.js';
export { CompressingSink } from './compress-sink.js';
export { DecompressingSource } from './decompress-source.js';

/**
 * A sink that writes to `sink` what it is given, compressed.
 *
 * `write` resolves once the bytes are copied or compressed, with at most some MiB on their way; what was written leaves
 * within a moment, also if nothing follows. `bytesWritten` counts uncompressed bytes, `compressedBytes` those on the
 * wire. `end` writes the end of the compressed stream, waits until all of it is written, and leaves `sink` open. `abort`
 * aborts `sink` too.
 *
 * @param algorithm One of `compressionsHere()`; UsageError for any other
 */
export function compressSink(sink: ByteSink, algorithm: string): CompressingSink {
  return new CompressingSink(sink, algorithm);
}

/**
 * A source that gives out, decompressed, what `source` holds, and reads from it no byte beyond the compressed stream's
 * end. At most some 100 KiB are decompressed before they are asked for.
 *
 * Who takes a stream whose end it knows by itself must call `finish` then, which reads the end of the compressed stream
 * and refuses one that goes on. `close` leaves `source` open. `position` counts uncompressed bytes, `compressedBytes`
 * those from the wire.
 *
 * `wait` rejects with StreamFormatError for data that is broken (`ERR_XEN_STREAM_COMPRESSION`, at an offset of the
 * compressed stream) and for `source` ending too early (`ERR_XEN_STREAM_TRUNCATED`).
 *
 * @param algorithm One of `compressionsHere()`; UsageError for any other
 */
export function decompressSource(source: ByteSource, algorithm: string): DecompressingSource {
  return new DecompressingSource(source, algorithm);
}
