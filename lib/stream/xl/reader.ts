/** Incremental reader of a file of `xl save`, which is also what `xl migrate` sends. */

import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../codes.js';
import { Collector } from '../collect.js';
import type { StreamEvent, XlHeaderEvent } from '../events.js';
import { LegacyReader, type LegacyReaderOptions } from '../legacy/reader.js';
import { LibxlReader, type LibxlReaderOptions } from '../libxl/reader.js';
import { ReaderBase } from '../reader-base.js';
import { XL_HEADER_SIZE, XlMandatoryFlag } from './constants.js';
import { decodeXlFixedHeader, decodeXlHeader, XL_HEADER } from './header.js';

export interface XlReaderOptions extends LibxlReaderOptions {
  /** Reads legacy images too. By default they are refused: a receiver of v2 streams has no use for them. */
  readonly legacy?: boolean | Pick<LegacyReaderOptions, 'guest' | 'wordSize' | 'skipQemu'> | undefined;
}

/**
 * Reads xl's header, then the libxl stream. If the header says that a legacy image follows, the header's event still
 * comes; then that image is read, or, unless it is wanted, the next `feed` or `end` throws StreamFormatError with
 * ERR_XEN_STREAM_LEGACY.
 */
export class XlReader extends ReaderBase {
  readonly #options: XlReaderOptions;
  readonly #start: number;
  readonly #collector = new Collector();
  // The header is collected in two parts: fixed, optional data.
  #fixed: Uint8Array | undefined;
  #inner: LibxlReader | LegacyReader | undefined;
  #legacy = false;

  constructor(options: XlReaderOptions = {}) {
    super(options);
    this.#options = options;
    this.#start = this.position;
    this.#collector.begin(XL_HEADER_SIZE);
  }

  get want(): number {
    if (this.#legacy) return 1;
    return this.#inner?.want ?? this.#collector.missing;
  }

  override get ahead(): number {
    return this.#inner?.ahead ?? this.want;
  }

  get done(): boolean {
    return this.#inner?.done ?? false;
  }

  /** Complete checkpoints of a legacy image; undefined otherwise. */
  get checkpoints(): number | undefined {
    return this.#inner instanceof LegacyReader ? this.#inner.checkpoints : undefined;
  }

  /** Zeros behind them. */
  get padding(): number {
    return this.#inner instanceof LegacyReader ? this.#inner.padding : 0;
  }

  get atBoundary(): boolean {
    if (this.#legacy) return true;
    return this.#inner?.atBoundary ?? (this.#fixed === undefined && this.#collector.have === 0);
  }

  protected get reading(): string | undefined {
    return XL_HEADER;
  }

  protected override last(): StreamEvent | undefined {
    return this.#inner instanceof LegacyReader ? this.#inner.end() : undefined;
  }

  protected override endError(): StreamFormatError {
    if (this.#legacy) return this.#legacyError();
    try {
      this.#inner?.end();
    } catch (error) {
      return error as StreamFormatError;
    }
    return super.endError();
  }

  protected step(bytes: Uint8Array): StreamEvent | undefined {
    if (this.#inner !== undefined) return this.#inner.feed(bytes);
    if (this.#legacy) throw this.#legacyError();
    const piece = this.#collector.feed(bytes);
    if (piece === undefined) return undefined;
    if (this.#fixed === undefined) {
      const { optionalDataLength } = decodeXlFixedHeader(piece, { offset: this.#start });
      if (optionalDataLength === 0) return this.#header(piece);
      this.#fixed = piece;
      this.#collector.begin(optionalDataLength);
      return undefined;
    }
    const raw = new Uint8Array(this.#fixed.length + piece.length);
    raw.set(this.#fixed);
    raw.set(piece, this.#fixed.length);
    return this.#header(raw);
  }

  #header(raw: Uint8Array): XlHeaderEvent {
    const header = decodeXlHeader(raw, { offset: this.#start });
    const options = { ...this.#options, offset: this.#start + raw.length };
    const { legacy = false } = this.#options;
    if ((header.mandatoryFlags & XlMandatoryFlag.STREAM_V2) !== 0) this.#inner = new LibxlReader(options);
    else if (legacy === false) this.#legacy = true;
    else this.#inner = new LegacyReader({ ...options, ...(legacy === true ? {} : legacy) });
    return { kind: 'xl-header', layer: 'xl', offset: this.#start, header, raw };
  }

  #legacyError(): StreamFormatError {
    const reason =
      'a legacy (v1) stream follows, as written by Xen before 4.6: it has to be converted first (xen-migrate convert)';
    const where = { offset: this.#start + 36, record: XL_HEADER, path: 'mandatoryFlags' };
    return formatError(StreamErrorCode.LEGACY, reason, where);
  }
}
