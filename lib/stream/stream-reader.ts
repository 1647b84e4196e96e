/** Incremental reader of a stream in any of the v2 formats. */

import type { StreamFormatError } from '../errors.js';
import { formatError, StreamErrorCode } from './codes.js';
import type { StreamEvent } from './events.js';
import { LibxcReader } from './libxc/reader.js';
import { LibxlReader, type LibxlReaderOptions } from './libxl/reader.js';
import { ReaderBase } from './reader-base.js';
import { RECOGNISE_SIZE, recogniseFormat, type StreamFormat } from './recognise.js';
import { XlReader } from './xl/reader.js';

export interface StreamReaderOptions extends LibxlReaderOptions {
  /** `auto` (default) recognises it by the first 8 bytes. */
  readonly format?: StreamFormat | 'auto' | undefined;
}

/**
 * Reads a libxc, libxl or xl stream. With `auto`, throws StreamFormatError with ERR_XEN_STREAM_LEGACY for what looks
 * like a legacy stream and ERR_XEN_STREAM_FORMAT for anything else that it does not know.
 */
export class StreamReader extends ReaderBase {
  readonly #options: StreamReaderOptions;
  readonly #start: number;
  readonly #first = new Uint8Array(RECOGNISE_SIZE);
  #have = 0;
  #format: StreamFormat | undefined;
  #reader: LibxcReader | LibxlReader | XlReader | undefined;

  constructor(options: StreamReaderOptions = {}) {
    super(options);
    this.#options = options;
    this.#start = this.position;
    const { format = 'auto' } = options;
    if (format !== 'auto') this.#open(format);
  }

  /** The format; undefined while it is not yet recognised. */
  get format(): StreamFormat | undefined {
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

  #recognise(): StreamFormat {
    const format = recogniseFormat(this.#first);
    switch (format) {
      case 'libxc':
      case 'libxl':
      case 'xl':
        return format;
      case 'legacy':
        throw this.#refuse(
          StreamErrorCode.LEGACY,
          'looks like a legacy (v1) libxc stream: it has to be converted first',
        );
      case 'xend':
        throw this.#refuse(
          StreamErrorCode.LEGACY,
          'is a save file of xend (LinuxGuestRecord) around a legacy (v1) stream: it has to be converted first',
        );
      case undefined:
        throw this.#refuse(StreamErrorCode.FORMAT, 'is neither a libxc, a libxl nor an xl stream');
    }
  }

  #refuse(code: StreamErrorCode, reason: string): StreamFormatError {
    const first = Array.from(this.#first, (byte) => byte.toString(16).padStart(2, '0')).join(' ');
    return formatError(code, `${reason} (begins with ${first})`, { offset: this.#start });
  }

  #open(format: StreamFormat): LibxcReader | LibxlReader | XlReader {
    const options = { ...this.#options, offset: this.#start };
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
    }
    return this.#reader;
  }
}
