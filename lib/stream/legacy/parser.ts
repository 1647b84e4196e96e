/**
 * What follows what in a legacy image, written down as it is read: a generator that asks for bytes and gives events. The
 * reader feeds it.
 *
 *     p2m_size                  word of the toolstack
 *     PV: all ones              word; then u32 length and the blocks of extended info
 *     PV: p2m frame list        a word for each leaf frame
 *     chunks                    i32 id and data, page batches among them, up to id 0
 *     tail                      PV: unmapped pfns, vcpus, shared info; HVM: magic pfns, context, QEMU's record
 *     chunks and tail again     for each further checkpoint of Remus
 */

import { PAGE_SIZE } from '../../abi/pages.js';
import { fppOf } from '../../abi/pv.js';
import { u32, u64n } from '../../bytes/le.js';
import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../codes.js';
import type { PageDataEvent, StreamEvent } from '../events.js';
import { REC_LENGTH_MAX } from '../libxc/constants.js';
import { LegacyBatchTable } from './batch.js';
import {
  LEGACY_BATCH_MAX,
  LEGACY_COMPRESSED_MAX,
  LEGACY_EXTENDED_INFO_MAX,
  LEGACY_P2M_SIZE_MAX,
  LEGACY_PARAM_CHUNKS,
  LEGACY_TOOLSTACK_MAX,
  LEGACY_VCPU_ID_MAX,
  LEGACY_XSAVE_HEAD_SIZE,
  LEGACY_XSAVE_MAX,
  LegacyChunk,
  legacyChunkName,
  LegacyPart,
} from './constants.js';
import { decodeExtendedInfo, decodeLegacyVcpuInfo, vcpuInfoSize, type LegacyExtendedInfo } from './decode.js';
import type { LegacyHeader } from './events.js';
import { parseHvmTail, parsePvTail } from './tails.js';
import { parseTmem, parseTmemExtra } from './tmem.js';

/** What the parser asks of the reader. `bytes` is answered by so many bytes, borrowed until the next question. */
export type Ask =
  | { readonly kind: 'bytes'; readonly size: number }
  | { readonly kind: 'back'; readonly bytes: Uint8Array }
  | { readonly kind: 'event'; readonly event: StreamEvent }
  | { readonly kind: 'skip'; readonly size: number }
  | { readonly kind: 'pages'; readonly size: number; readonly offset: number }
  /** Answered by all bytes up to the end of the file. */
  | { readonly kind: 'until-eof' }
  /** The last: nothing but zeros may follow, else it is this error. */
  | { readonly kind: 'zeros'; readonly otherwise: StreamFormatError };

/** A part of the parsing that comes to a value. */
export type Parsing<T = void> = Generator<Ask, T, Uint8Array>;

export interface ParserOptions {
  readonly guest: 'pv' | 'hvm' | undefined;
  readonly wordSize: 4 | 8 | undefined;
  readonly skipQemu: boolean;
  /** Offset of the image's first byte. */
  readonly start: number;
  /** Throws the error, or returns it for a lenient reader's event. */
  readonly violation: (error: StreamFormatError | undefined) => StreamFormatError | undefined;
}

export const ID_SIZE = 4;
/** A p2m_size that gzip's first bytes look like, where the time in them is 0. */
const GZIP = 0x08_8b1f;
const ALL_ONES = 0xffff_ffff;

/** First bytes of what xl's sender says after the image: "domain is yours, …". Xen 4.0 has no LAST_CHECKPOINT before it. */
const HANDOVER_ID = 0x616d_6f64;

export class LegacyParser {
  readonly #options: ParserOptions;
  readonly #table = new LegacyBatchTable();
  /** Offset of the next byte to ask for. */
  #at: number;
  #header: LegacyHeader | undefined;
  #online: readonly number[] = [0];
  /** No other checkpoint follows. */
  lastCheckpoint = false;
  #compressionAnnounced = false;
  #compressed = false;
  checkpoints = 0;
  /** Name of what is being read. */
  reading: string = LegacyPart.HEADER;
  /** The next byte begins a chunk. */
  atChunk = false;

  constructor(options: ParserOptions) {
    this.#options = options;
    this.#at = options.start;
  }

  /** The image is over where QEMU's record begins, if no checkpoint follows. */
  get skipQemu(): boolean {
    return this.#options.skipQemu;
  }

  /** The image may end here: the next byte would begin another checkpoint. */
  get mayEnd(): boolean {
    return this.atChunk && this.checkpoints > 0 && this.#atCheckpoint;
  }

  #atCheckpoint = false;

  *parse(): Parsing {
    const header = yield* this.#readHeader();
    this.#header = header;
    for (;;) {
      if (yield* this.#chunks(header)) return;
      if (header.guest === 'pv') yield* parsePvTail(this, header, this.#online);
      else yield* parseHvmTail(this);
      this.#compressed = this.#compressionAnnounced;
      if (this.lastCheckpoint) return;
    }
  }

  /** Throws if QEMU's state, of so many bytes so far, is too long. */
  checkLength(length: number): void {
    if (length > REC_LENGTH_MAX) {
      throw this.error(StreamErrorCode.LIMIT, `QEMU's state has more than ${REC_LENGTH_MAX} bytes`);
    }
  }

  // -- helpers of all parts ------------------------------------------------------------------------------------------

  /** Asks for bytes; counts them. */
  *bytes(size: number): Parsing<Uint8Array> {
    const bytes = yield { kind: 'bytes', size };
    this.#at += size;
    return bytes;
  }

  /** Gives bytes back that were the last to be asked for. */
  *back(bytes: Uint8Array): Parsing {
    this.#at -= bytes.length;
    yield { kind: 'back', bytes };
  }

  /** All bytes up to the end of the file. */
  *rest(): Parsing<Uint8Array> {
    const bytes = yield { kind: 'until-eof' };
    this.#at += bytes.length;
    return bytes;
  }

  *skip(size: number): Parsing {
    if (size > 0) yield { kind: 'skip', size };
    this.#at += size;
  }

  get offset(): number {
    return this.#at;
  }

  /** The error of a field `back` bytes before here. */
  error(code: StreamErrorCode, reason: string, path?: string, back = 0): StreamFormatError {
    return formatError(code, reason, { offset: this.#at - back, record: this.reading, path });
  }

  violation(error: StreamFormatError | undefined): StreamFormatError | undefined {
    return this.#options.violation(error);
  }

  /** Throws if a length is above its limit. `back` bytes before here it stands. */
  limit(length: number, max: number, path: string, back: number): number {
    if (length > max) {
      throw this.error(StreamErrorCode.LIMIT, `${length} is above the limit of ${max}`, path, back);
    }
    return length;
  }

  *word(path: string): Parsing<number> {
    const { wordSize } = this.#header as LegacyHeader;
    const bytes = yield* this.bytes(wordSize);
    if (wordSize === 8 && u32(bytes, 4) !== 0) {
      throw this.error(StreamErrorCode.LIMIT, `0x${u64n(bytes, 0).toString(16)} is too large`, path, 8);
    }
    return u32(bytes, 0);
  }

  // -- before the chunks ---------------------------------------------------------------------------------------------

  /**
   * The word size shows in the upper half of the first 8 bytes: 0 from a 64-bit toolstack, since p2m_size has 28 bits;
   * else the marker of a PV guest, or a first chunk, which is never the end of the chunks. A PV guest has the marker.
   */
  *#readHeader(): Parsing<LegacyHeader> {
    const { guest: toldGuest, wordSize: toldSize, start } = this.#options;
    const first = (yield* this.bytes(8)).slice();
    const p2mSize = u32(first, 0);
    const wordSize = u32(first, 4) === 0 ? 8 : 4;
    if (toldSize !== undefined && toldSize !== wordSize) {
      const reason = `the words are of ${wordSize * 8} bits, not of ${toldSize * 8} as was said`;
      throw this.error(StreamErrorCode.FIELD, reason, 'p2m_size', 4);
    }
    if (p2mSize === 0 || p2mSize > LEGACY_P2M_SIZE_MAX) {
      const reason = `${p2mSize} pages: not in 1…${LEGACY_P2M_SIZE_MAX}`;
      throw this.error(StreamErrorCode.LIMIT, reason, 'p2m_size', 8);
    }
    const next = wordSize === 8 ? (yield* this.bytes(4)).slice() : first.subarray(4);
    const guest = u32(next, 0) === ALL_ONES ? 'pv' : 'hvm';
    if (toldGuest !== undefined && toldGuest !== guest) {
      const why = guest === 'pv' ? 'there is' : 'there is no';
      const reason = `${why} extended info of a PV guest: this is no image of ${toldGuest === 'pv' ? 'a PV' : 'an HVM'} guest`;
      throw this.error(StreamErrorCode.GUEST_TYPE, reason, 'marker', 4);
    }
    let header: LegacyHeader = {
      wordSize,
      guest,
      p2mSize,
      guestWidth: undefined,
      extendedContexts: false,
      xsaveSize: 0,
      p2mFrames: undefined,
    };
    this.#header = header;
    let violation: StreamFormatError | undefined;
    if (guest === 'hvm') yield* this.back(next);
    else {
      const info = yield* this.#extendedInfo(wordSize);
      const { frames, problem } = yield* this.#p2mFrames(p2mSize, info, wordSize);
      violation = this.violation(problem);
      header = { ...header, ...info, p2mFrames: frames };
    }
    const length = this.#at - start;
    yield {
      kind: 'event',
      event: {
        kind: 'legacy-header',
        layer: 'legacy',
        offset: start,
        header,
        length,
        ...(violation && { violation }),
      },
    };
    return header;
  }

  *#extendedInfo(wordSize: 4 | 8): Parsing<LegacyExtendedInfo> {
    if (wordSize === 8 && u32(yield* this.bytes(4), 0) !== ALL_ONES) {
      throw this.error(StreamErrorCode.MARKER, "a PV guest's marker that is half ones", 'marker', 8);
    }
    this.reading = LegacyPart.EXTENDED_INFO;
    const length = u32(yield* this.bytes(4), 0);
    this.limit(length, LEGACY_EXTENDED_INFO_MAX, 'length', 4);
    if (length === 0) {
      throw this.error(
        StreamErrorCode.MISSING,
        "no blocks, so that the guest's width is unknown",
        'length',
        4,
      );
    }
    const offset = this.#at;
    const info = decodeExtendedInfo(yield* this.bytes(length), { offset });
    const { xsaveSize } = info;
    if (xsaveSize !== 0 && (xsaveSize <= LEGACY_XSAVE_HEAD_SIZE || xsaveSize > LEGACY_XSAVE_MAX)) {
      const reason = `an xsave area of ${xsaveSize} bytes with its header`;
      throw this.error(StreamErrorCode.FIELD, reason, 'xcnt', length);
    }
    return info;
  }

  *#p2mFrames(
    p2mSize: number,
    { guestWidth }: LegacyExtendedInfo,
    wordSize: 4 | 8,
  ): Parsing<{ readonly frames: Float64Array; readonly problem: StreamFormatError | undefined }> {
    this.reading = LegacyPart.P2M_FRAME_LIST;
    const count = Math.floor((p2mSize - 1) / fppOf(guestWidth)) + 1;
    const list = yield* this.bytes(count * wordSize);
    const frames = new Float64Array(count);
    let problem: StreamFormatError | undefined;
    for (let i = 0; i < count; i++) {
      const pfn = wordSize === 8 ? u64n(list, i * 8) : u32(list, i * 4);
      frames[i] = pfn;
      if (pfn < p2mSize) continue;
      const reason = `pfn ${pfn} is not below the guest's p2m_size ${p2mSize}`;
      problem ??= this.error(StreamErrorCode.FIELD, reason, `frames[${i}]`, list.length - i * wordSize);
    }
    return { frames, problem };
  }

  // -- chunks --------------------------------------------------------------------------------------------------------

  /** Up to the end of the body. True if the image has ended instead. */
  *#chunks(header: LegacyHeader): Parsing<boolean> {
    this.#atCheckpoint = this.checkpoints > 0;
    let hadVcpus = false;
    for (;;) {
      this.reading = 'chunk';
      this.atChunk = true;
      const id = u32(yield* this.bytes(ID_SIZE), 0) | 0;
      this.atChunk = false;
      if (this.#atCheckpoint && id === HANDOVER_ID) return true;
      if (this.#atCheckpoint && id === LegacyChunk.END) return yield* this.#padding();
      this.#atCheckpoint = false;
      const offset = this.#at - ID_SIZE;
      if (id > 0) {
        yield* this.#batch(id, offset, header);
        continue;
      }
      this.reading = legacyChunkName(id);
      switch (id) {
        case LegacyChunk.TMEM:
          yield* parseTmem(this);
          continue;
        case LegacyChunk.TMEM_EXTRA:
          yield* parseTmemExtra(this);
          continue;
        default:
      }
      const body = (yield* this.#chunkBody(id)).slice();
      let problem: StreamFormatError | undefined;
      if (LEGACY_PARAM_CHUNKS.has(id) && header.guest === 'pv') {
        problem = this.error(
          StreamErrorCode.TYPE,
          'a PV guest has no HVM parameters',
          undefined,
          body.length + 4,
        );
      }
      switch (id) {
        case LegacyChunk.VCPU_INFO:
          if (hadVcpus) {
            problem = this.error(
              StreamErrorCode.DUPLICATE,
              'a second list of vcpus',
              undefined,
              body.length + 4,
            );
          }
          hadVcpus = true;
          this.#online = decodeLegacyVcpuInfo(body, { offset }).online;
          break;
        case LegacyChunk.LAST_CHECKPOINT:
          this.lastCheckpoint = true;
          break;
        case LegacyChunk.ENABLE_COMPRESSION:
          this.#compressionAnnounced = true;
          break;
        case LegacyChunk.COMPRESSED_DATA:
          if (!this.#compressed) {
            problem = this.error(
              StreamErrorCode.ORDER,
              'compressed pages before compression was enabled',
              undefined,
              body.length,
            );
          }
          break;
      }
      const violation = this.violation(problem);
      const name = legacyChunkName(id);
      yield {
        kind: 'event',
        event: {
          kind: 'legacy-chunk',
          layer: 'legacy',
          offset,
          id,
          name,
          body,
          ...(violation && { violation }),
        },
      };
      if (id === LegacyChunk.END) return false;
    }
  }

  /** No checkpoint begins with its END, since writers repeat VCPU_INFO in each: zeros that fill a block or a disk up. */
  *#padding(): Parsing<boolean> {
    this.reading = legacyChunkName(LegacyChunk.END);
    const reason = 'a checkpoint without a list of vcpus or anything else';
    yield { kind: 'zeros', otherwise: this.error(StreamErrorCode.MISSING, reason, 'id', ID_SIZE) };
    return true;
  }

  /** The bytes of a chunk other than a batch and tmem's, without lengths that stand before them. */
  *#chunkBody(id: number): Parsing<Uint8Array> {
    const none = new Uint8Array(0);
    if (LEGACY_PARAM_CHUNKS.has(id)) return yield* this.bytes(12);
    switch (id) {
      case LegacyChunk.END:
      case LegacyChunk.ENABLE_VERIFY_MODE:
      case LegacyChunk.LAST_CHECKPOINT:
      case LegacyChunk.ENABLE_COMPRESSION:
        return none;
      case LegacyChunk.VCPU_INFO: {
        const head = yield* this.bytes(4);
        const maxId = this.limit(u32(head, 0), LEGACY_VCPU_ID_MAX, 'max_id', 4);
        yield* this.back(head);
        return yield* this.bytes(vcpuInfoSize(maxId));
      }
      case LegacyChunk.TSC_INFO:
        return yield* this.bytes(20);
      case LegacyChunk.TOOLSTACK: {
        const size = u32(yield* this.bytes(4), 0);
        this.limit(size, LEGACY_TOOLSTACK_MAX, 'length', 4);
        return size === 0 ? none : yield* this.bytes(size);
      }
      case LegacyChunk.COMPRESSED_DATA: {
        const size = yield* this.word('size');
        this.limit(size, LEGACY_COMPRESSED_MAX, 'size', (this.#header as LegacyHeader).wordSize);
        return size === 0 ? none : yield* this.bytes(size);
      }
      default: {
        const gzip = ((this.#header as LegacyHeader).p2mSize & 0xff_ffff) === GZIP;
        const reason = `no chunk has this id${gzip ? '; the image begins as a file of gzip does: decompress it first' : ''}`;
        throw this.error(StreamErrorCode.TYPE, reason, 'id', ID_SIZE);
      }
    }
  }

  *#batch(count: number, offset: number, { wordSize, p2mSize }: LegacyHeader): Parsing {
    this.reading = LegacyPart.PAGE_BATCH;
    this.limit(count, LEGACY_BATCH_MAX, 'count', ID_SIZE);
    const table = this.#table;
    const problem = table.decode(yield* this.bytes(count * wordSize), wordSize, p2mSize, offset);
    const violation = this.violation(problem);
    const size = this.#compressed ? 0 : table.dataPages * PAGE_SIZE;
    const event: PageDataEvent = {
      kind: 'page-data',
      layer: 'legacy',
      offset,
      length: ID_SIZE + count * wordSize + size,
      count: table.count,
      pfns: table.pfns,
      types: table.types,
      dataPages: table.dataPages,
      run: table.run && violation === undefined,
      reservedBitsAt: -1,
      reserved: 0,
      ...(this.#compressed && { compressed: true }),
      ...(violation && { violation }),
    };
    yield { kind: 'event', event };
    if (violation !== undefined) return yield* this.skip(size);
    if (size > 0) yield { kind: 'pages', size, offset };
    this.#at += size;
  }
}
