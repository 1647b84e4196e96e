/** The algorithms that a stream can be compressed with on its way, by node:zlib, and how they are set up here. */
import * as zlib from 'node:zlib';
import { UsageError } from '../errors.js';

/** Name of an algorithm, as both ends of a migration say it. */
export type Compression = 'zstd' | 'brotli' | 'gzip';

/** What the streams of node:zlib have in common. */
export type ZlibStream = zlib.Gzip | zlib.Gunzip | zlib.BrotliCompress | zlib.BrotliDecompress;

/** Bytes that one turn of an engine gives out at most. */
export const ENGINE_CHUNK = 128 * 1024;

interface Algorithm {
  /** This Node has it. */
  readonly here: boolean;
  readonly compress: () => ZlibStream;
  readonly decompress: () => ZlibStream;
  /** What `flush` takes so that all that was written can be read at the other end. */
  readonly flush: number;
}

// One chunk is made ahead, and no more: what nobody asks for is not decompressed.
const output = { chunkSize: ENGINE_CHUNK, readableHighWaterMark: 1 };

const { constants } = zlib;

/** Types of Node 20 do not know zstd, which Node has from 22.15 on. */
const zstd = zlib as unknown as {
  createZstdCompress?: (options: object) => ZlibStream;
  createZstdDecompress?: (options: object) => ZlibStream;
};
const zstdConstants = constants as unknown as Readonly<Record<string, number>>;

/** log2 of the window of zstd: what level 1 has, and the most that is taken from a peer, 8 MiB. */
const ZSTD_WINDOW = { compress: 19, decompress: 23 } as const;

/** Best first: little time for much saved, which `npm run bench transport` shows. All at their fastest, since a network is rarely slower than they are. */
const algorithms: Readonly<Record<Compression, Algorithm>> = {
  zstd: {
    here: zstd.createZstdCompress !== undefined && zstd.createZstdDecompress !== undefined,
    compress: () =>
      have(zstd.createZstdCompress)({
        ...output,
        params: {
          [key('ZSTD_c_compressionLevel')]: 1,
          [key('ZSTD_c_windowLog')]: ZSTD_WINDOW.compress,
        },
      }),
    decompress: () =>
      have(zstd.createZstdDecompress)({
        ...output,
        params: { [key('ZSTD_d_windowLogMax')]: ZSTD_WINDOW.decompress },
      }),
    flush: zstdConstants['ZSTD_e_flush'] ?? 1,
  },
  brotli: {
    here: true,
    compress: () =>
      zlib.createBrotliCompress({
        ...output,
        params: { [constants.BROTLI_PARAM_QUALITY]: 1, [constants.BROTLI_PARAM_LGWIN]: 18 },
      }),
    decompress: () => zlib.createBrotliDecompress(output),
    flush: constants.BROTLI_OPERATION_FLUSH,
  },
  gzip: {
    here: true,
    compress: () => zlib.createGzip({ ...output, level: 1 }),
    decompress: () => zlib.createGunzip(output),
    flush: constants.Z_SYNC_FLUSH,
  },
};

function have<T>(value: T | undefined): T {
  if (value === undefined) throw new UsageError('this Node has no zstd; it came with Node 22.15');
  return value;
}

function key(name: string): number {
  return have(zstdConstants[name]);
}

/** Names of all algorithms that the library knows, best first. */
export const COMPRESSIONS = Object.keys(algorithms) as readonly Compression[];

/** The algorithms that this Node has, best first. */
export function compressionsHere(): Compression[] {
  return COMPRESSIONS.filter((name) => algorithms[name].here);
}

/** How an algorithm is set up. Throws UsageError for one that is unknown or that this Node does not have. */
export function algorithmOf(name: string): Algorithm {
  const algorithm = Object.hasOwn(algorithms, name) ? algorithms[name as Compression] : undefined;
  if (algorithm?.here !== true) {
    const why = algorithm === undefined ? 'is unknown' : 'is not in this Node';
    throw new UsageError(`compression "${name}" ${why}; here are ${compressionsHere().join(', ')}`);
  }
  return algorithm;
}
