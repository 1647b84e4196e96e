/** Incremental reader of a stream in any of the formats. */

import type { StreamFormatError } from '../errors.js';
import { formatError, StreamErrorCode } from './codes.js';
import type { StreamEvent } from './events.js';
import { LibxcReader } from './libxc/reader.js';
import { LegacyReader } from './legacy/reader.js';
import { LibxlReader } from './libxl/reader.js';
import { ReaderBase } from './reader-base.js';
import { compressorOf, RECOGNISE_SIZE, recogniseFormat, type RecognisedFormat } from './recognise.js';
import { XendReader } from './xend/reader.js';
import { XlReader, type XlReaderOptions } from './xl/reader.js';

export interface StreamReaderOptions extends XlReaderOptions {
  /** `auto` (default) recognises it by the first 8 bytes. */
  readonly format?: RecognisedFormat | 'auto' | undefined;
}

type InnerReader = LibxcReader | LibxlReader | XlReader | LegacyReader | XendReader;

const CURE = 'it has to be converted first (xen-migrate convert)';

/**
 * Reads a libxc, libxl or xl stream, and with `legacy` a legacy image too, bare or behind xl's or xend's header. Throws
 * StreamFormatError with ERR_XEN_STREAM_LEGACY for a legacy image that is not wanted, and with `auto`
 * ERR_XEN_STREAM_FORMAT for anything that it does not know.
 */
export class StreamReader extends ReaderBase {
  readonly #options: StreamReaderOptions;
  readonly #start: number;
  readonly #first = new Uint8Array(RECOGNISE_SIZE);
  #have = 0;
  #format: RecognisedFormat | undefined;
  #reader: InnerReader | undefined;

  constructor(options: StreamReaderOptions = {}) {
    super(options);
    this.#options = options;
    this.#start = this.position;
    const { format = 'auto' } = options;
    if (format !== 'auto') this.#open(format);
  }

  /** The format; undefined while it is not yet recognised. */
  get format(): RecognisedFormat | undefined {
    return this.#format;
  }

  get want(): number {
    return this.#reader?.want ?? RECOGNISE_SIZE - this.#have;
  }

  override get ahead(): number {
    return this.#reader?.ahead ?? this.want;
  }

  get done(): boolean {
    return this.#reader?.done ?? false;
  }

  get atBoundary(): boolean {
    return this.#reader?.atBoundary ?? this.#have === 0;
  }

  protected get reading(): string | undefined {
    return undefined;
  }

  /** Complete checkpoints of a legacy image; undefined for other formats. */
  get checkpoints(): number | undefined {
    const reader = this.#reader;
    return reader instanceof LegacyReader || reader instanceof XlReader || reader instanceof XendReader
      ? reader.checkpoints
      : undefined;
  }

  /** Zeros that were read behind a legacy image which does not say where it ends. */
  get padding(): number {
    const reader = this.#reader;
    return reader instanceof LegacyReader || reader instanceof XlReader || reader instanceof XendReader
      ? reader.padding
      : 0;
  }

  protected override last(): StreamEvent | undefined {
    return this.#reader?.end();
  }

  protected override endError(): StreamFormatError {
    try {
      this.#reader?.end();
    } catch (error) {
      return error as StreamFormatError;
    }
    const reason = `the stream ends after ${this.#have} bytes, too few to recognise its format`;
    return formatError(StreamErrorCode.TRUNCATED, reason, { offset: this.position });
  }

  protected step(bytes: Uint8Array): StreamEvent | undefined {
    if (this.#reader !== undefined) return this.#reader.feed(bytes);
    this.#first.set(bytes, this.#have);
    this.#have += bytes.length;
    if (this.#have < RECOGNISE_SIZE) return undefined;
    // Every format's first header is longer, so this is never an event.
    return this.#open(this.#recognise()).feed(this.#first);
  }

  #recognise(): RecognisedFormat {
    const format = recogniseFormat(this.#first);
    if (format !== undefined) return format;
    const compressor = compressorOf(this.#first);
    const what =
      compressor === undefined
        ? 'is neither a libxc, a libxl nor an xl stream'
        : `is a file of ${compressor}: decompress it first`;
    throw this.#refuse(StreamErrorCode.FORMAT, what);
  }

  #refuse(code: StreamErrorCode, reason: string): StreamFormatError {
    const first = Array.from(this.#first, (byte) => byte.toString(16).padStart(2, '0')).join(' ');
    return formatError(code, `${reason} (begins with ${first})`, { offset: this.#start });
  }

  #open(format: RecognisedFormat): InnerReader {
    const options = { ...this.#options, offset: this.#start };
    const { legacy = false } = this.#options;
    const told = legacy === true || legacy === false ? {} : legacy;
    this.#format = format;
    switch (format) {
      case 'libxc':
        this.#reader = new LibxcReader(options);
        break;
      case 'libxl':
        this.#reader = new LibxlReader(options);
        break;
      case 'xl':
        this.#reader = new XlReader(options);
        break;
      case 'legacy':
        if (legacy === false)
          throw this.#refuse(StreamErrorCode.LEGACY, `looks like a legacy (v1) libxc stream: ${CURE}`);
        this.#reader = new LegacyReader({ ...options, ...told });
        break;
      case 'xend':
        if (legacy === false) {
          const what = 'is a save file of xend (LinuxGuestRecord) around a legacy (v1) stream';
          throw this.#refuse(StreamErrorCode.LEGACY, `${what}: ${CURE}`);
        }
        this.#reader = new XendReader({ ...options, ...told });
        break;
    }
    return this.#reader;
  }
}
