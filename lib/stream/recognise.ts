/** Which format a stream is in, from its first 8 bytes. */

import { u32 } from '../bytes/le.js';

/** Formats that the readers read. */
export type StreamFormat = 'libxc' | 'libxl' | 'xl';

/** What a stream's first bytes can be: a format, a legacy (v1) image of libxc, or xend's save file around one. */
export type RecognisedFormat = StreamFormat | 'legacy' | 'xend';

/** Bytes that `recogniseFormat` needs. */
export const RECOGNISE_SIZE = 8;

const LEGACY_P2M_SIZE_MAX = 0x0fff_ffff;
const LEGACY_BATCH_MAX = 1024;
// Chunk ids are known down to −21; some room for those that nobody has seen.
const LEGACY_CHUNKS = 64;

/**
 * Recognises a format by its first 8 bytes (`bytes` may be longer). Undefined if it is none of those known.
 *
 * A legacy image has no magic: it begins with the guest's size in pages, as a word of the toolstack that wrote it.
 *
 *     offset  size  field
 *          0     4  p2m_size, 1 … 2^28 − 1
 *          4     4  64-bit toolstack: 0. 32-bit: a PV guest's extended-info marker (all ones), else the first chunk's
 *                   id, negative, or a number of pages up to 1024
 */
export function recogniseFormat(bytes: Uint8Array): RecognisedFormat | undefined {
  if (bytes.length < RECOGNISE_SIZE) return undefined;
  if (bytes.subarray(0, RECOGNISE_SIZE).every((byte) => byte === 0xff)) return 'libxc';
  const text = String.fromCharCode(...bytes.subarray(0, RECOGNISE_SIZE));
  if (text === 'LibxlFmt') return 'libxl';
  if (text === 'Xen save') return 'xl';
  if (text === 'LinuxGue') return 'xend';
  const p2mSize = u32(bytes, 0);
  const next = u32(bytes, 4) | 0;
  const plausible = p2mSize > 0 && p2mSize <= LEGACY_P2M_SIZE_MAX && next <= LEGACY_BATCH_MAX;
  return plausible && next > -LEGACY_CHUNKS ? 'legacy' : undefined;
}

/** What files begin with that a compressor has made, in hexadecimal. */
const COMPRESSORS: readonly (readonly [name: string, magic: string])[] = [
  ['gzip', '1f8b08'],
  ['zstd', '28b52ffd'],
  ['xz', 'fd377a585a'],
  ['bzip2', '425a68'],
  ['lz4', '04224d18'],
];

/** Name of the program that has compressed a file which begins with these bytes; undefined if it is none of those known. */
export function compressorOf(bytes: Uint8Array): string | undefined {
  const text = Array.from(bytes.subarray(0, RECOGNISE_SIZE), (byte) =>
    byte.toString(16).padStart(2, '0'),
  ).join('');
  return COMPRESSORS.find(([, magic]) => text.startsWith(magic))?.[0];
}
