/** Incremental reader of a file of `xl save`, which is also what `xl migrate` sends. */

import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../codes.js';
import { Collector } from '../collect.js';
import type { StreamEvent, XlHeaderEvent } from '../events.js';
import { LibxlReader, type LibxlReaderOptions } from '../libxl/reader.js';
import { ReaderBase } from '../reader-base.js';
import { XL_HEADER_SIZE, XlMandatoryFlag } from './constants.js';
import { decodeXlFixedHeader, decodeXlHeader, XL_HEADER } from './header.js';

export type XlReaderOptions = LibxlReaderOptions;

/**
 * Reads xl's header, then the libxl stream. If the header says that a legacy stream follows, the header's event still
 * comes; the next `feed`, or `end`, throws StreamFormatError with ERR_XEN_STREAM_LEGACY.
 */
export class XlReader extends ReaderBase {
  readonly #options: XlReaderOptions;
  readonly #start: number;
  readonly #collector = new Collector();
  // The header is collected in two parts: fixed, optional data.
  #fixed: Uint8Array | undefined;
  #libxl: LibxlReader | undefined;
  #legacy = false;

  constructor(options: XlReaderOptions = {}) {
    super(options);
    this.#options = options;
    this.#start = this.position;
    this.#collector.begin(XL_HEADER_SIZE);
  }

  get want(): number {
    if (this.#legacy) return 1;
    return this.#libxl?.want ?? this.#collector.missing;
  }

  override get ahead(): number {
    return this.#libxl?.ahead ?? this.want;
  }

  get done(): boolean {
    return this.#libxl?.done ?? false;
  }

  get atBoundary(): boolean {
    if (this.#legacy) return true;
    return this.#libxl?.atBoundary ?? (this.#fixed === undefined && this.#collector.have === 0);
  }

  protected get reading(): string | undefined {
    return XL_HEADER;
  }

  protected override endError(): StreamFormatError {
    if (this.#legacy) return this.#legacyError();
    try {
      this.#libxl?.end();
    } catch (error) {
      return error as StreamFormatError;
    }
    return super.endError();
  }

  protected step(bytes: Uint8Array): StreamEvent | undefined {
    if (this.#libxl !== undefined) return this.#libxl.feed(bytes);
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
    if ((header.mandatoryFlags & XlMandatoryFlag.STREAM_V2) === 0) this.#legacy = true;
    else this.#libxl = new LibxlReader({ ...this.#options, offset: this.#start + raw.length });
    return { kind: 'xl-header', layer: 'xl', offset: this.#start, header, raw };
  }

  #legacyError(): StreamFormatError {
    const reason = 'a legacy (v1) stream follows, as written by Xen before 4.6: it has to be converted first';
    const where = { offset: this.#start + 36, record: XL_HEADER, path: 'mandatoryFlags' };
    return formatError(StreamErrorCode.LEGACY, reason, where);
  }
}
