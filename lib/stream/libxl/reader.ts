/** Incremental reader of a libxl stream, with the libxc stream in it. */

import type { StreamFormatError } from '../../errors.js';
import { formatError, StreamErrorCode } from '../codes.js';
import { Collector, HeaderCollector } from '../collect.js';
import type { RecordEvent, StreamEvent } from '../events.js';
import { decodeRecordHeader, RECORD_HEADER_SIZE, roundUp } from '../framing.js';
import { LibxcRecord } from '../libxc/constants.js';
import { LibxcReader } from '../libxc/reader.js';
import { ReaderBase, type ReaderOptions } from '../reader-base.js';
import { LIBXL_HEADER_SIZE, LIBXL_REC_LENGTH_MAX, libxlRecordName, LibxlRecord } from './constants.js';
import { decodeLibxlHeader, LIBXL_HEADER } from './header.js';
import { libxlLengthProblem } from './lengths.js';

export interface LibxlReaderOptions extends ReaderOptions {
  /** Longest libxl record body, in bytes. Default LIBXL_REC_LENGTH_MAX. Not for the libxc part. */
  readonly maxRecordLength?: number | undefined;
}

type State = 'header' | 'record-header' | 'body' | 'done';

const NO_BYTES = new Uint8Array(0);

/**
 * Reads a libxl stream from its header to its END record. The libxc stream after LIBXC_CONTEXT is read in place, its
 * events among the others. After a libxc CHECKPOINT come libxl records up to CHECKPOINT_END, then the same libxc stream
 * goes on; after libxc's END come libxl records again.
 *
 * Holds one record at a time.
 */
export class LibxlReader extends ReaderBase {
  readonly #options: LibxlReaderOptions;
  readonly #maxLength: number;
  readonly #head = new HeaderCollector(LIBXL_HEADER_SIZE);
  readonly #body = new Collector();
  #state: State = 'header';
  #offset: number;
  #type = 0;
  #length = 0;
  #violation: StreamFormatError | undefined;
  // The libxc stream while its bytes come, and while it waits for CHECKPOINT_END.
  #libxc: LibxcReader | undefined;
  #interrupted: LibxcReader | undefined;
  #hadLibxc = false;

  constructor(options: LibxlReaderOptions = {}) {
    super(options);
    this.#options = options;
    this.#maxLength = options.maxRecordLength ?? LIBXL_REC_LENGTH_MAX;
    this.#offset = this.position;
    this.#head.begin(LIBXL_HEADER_SIZE);
  }

  get want(): number {
    if (this.#libxc !== undefined) return this.#libxc.want;
    if (this.#state === 'body') return this.#body.missing;
    return this.done ? 0 : this.#head.missing;
  }

  override get ahead(): number {
    return this.#libxc?.ahead ?? this.want;
  }

  get done(): boolean {
    return this.#state === 'done';
  }

  get atBoundary(): boolean {
    if (this.#libxc !== undefined) return this.#libxc.atBoundary;
    return this.done || (this.#state !== 'body' && this.#head.have === 0);
  }

  protected get reading(): string | undefined {
    if (this.#state === 'header') return LIBXL_HEADER;
    if (this.#state === 'body') return libxlRecordName(this.#type);
    return this.#head.have === 0 ? undefined : 'record header';
  }

  /** True between a libxc CHECKPOINT record and CHECKPOINT_END. */
  get inCheckpoint(): boolean {
    return this.#interrupted !== undefined;
  }

  protected override endError(): StreamFormatError {
    if (this.#libxc === undefined) return super.endError();
    try {
      this.#libxc.end();
    } catch (error) {
      return error as StreamFormatError;
    }
    return super.endError();
  }

  protected step(bytes: Uint8Array): StreamEvent | undefined {
    if (this.#libxc !== undefined) return this.#libxcBytes(this.#libxc, bytes);
    switch (this.#state) {
      case 'header':
        return this.#header(bytes);
      case 'record-header':
        return this.#recordHeader(bytes);
      case 'body':
        return this.#record(this.#body.feed(bytes));
      case 'done':
        return undefined;
    }
  }

  #libxcBytes(libxc: LibxcReader, bytes: Uint8Array): StreamEvent | undefined {
    const event = libxc.feed(bytes);
    if (event?.kind === 'record' && event.type === LibxcRecord.CHECKPOINT) {
      this.#interrupted = libxc;
      this.#libxc = undefined;
    } else if (libxc.done) {
      this.#libxc = undefined;
    }
    if (this.#libxc === undefined) this.#toRecordHeader(libxc.position);
    return event;
  }

  #header(bytes: Uint8Array): StreamEvent | undefined {
    const head = this.#head.feed(bytes);
    if (head === undefined) return undefined;
    const raw = new Uint8Array(head);
    const offset = this.#offset;
    const header = decodeLibxlHeader(raw, { offset });
    this.#toRecordHeader(offset + LIBXL_HEADER_SIZE);
    return { kind: 'libxl-header', layer: 'libxl', offset, header, raw };
  }

  #recordHeader(bytes: Uint8Array): StreamEvent | undefined {
    const head = this.#head.feed(bytes);
    if (head === undefined) return undefined;
    const { type, length } = decodeRecordHeader(head);
    this.#type = type;
    this.#length = length;
    if (length > this.#maxLength) {
      const where = { offset: this.#offset + 4, record: libxlRecordName(type), path: 'length' };
      const reason = `length ${length} is above the limit of ${this.#maxLength} bytes`;
      throw formatError(StreamErrorCode.LIMIT, reason, where);
    }
    const place = { offset: this.#offset };
    this.#violation = this.violation(libxlLengthProblem(type, length, place) ?? this.#orderProblem(type));
    if (length === 0) return this.#record(NO_BYTES);
    this.#state = 'body';
    this.#body.begin(roundUp(length));
    return undefined;
  }

  /** Records that change whose turn it is, where they cannot. */
  #orderProblem(type: number): StreamFormatError | undefined {
    let reason: string | undefined;
    if (type === LibxlRecord.CHECKPOINT_END && !this.inCheckpoint) reason = 'no checkpoint has begun';
    else if (type === LibxlRecord.END && this.inCheckpoint) reason = 'inside a checkpoint';
    else if (type === LibxlRecord.LIBXC_CONTEXT && this.inCheckpoint) reason = 'inside a checkpoint';
    else if (type === LibxlRecord.LIBXC_CONTEXT && this.#hadLibxc) reason = 'a second libxc stream';
    if (reason === undefined) return undefined;
    const where = { offset: this.#offset, record: libxlRecordName(type) };
    return formatError(StreamErrorCode.ORDER, reason, where);
  }

  #record(whole: Uint8Array | undefined): StreamEvent | undefined {
    if (whole === undefined) return undefined;
    const event: RecordEvent = {
      kind: 'record',
      layer: 'libxl',
      offset: this.#offset,
      type: this.#type,
      name: libxlRecordName(this.#type),
      body: whole.subarray(0, this.#length),
      padding: whole.subarray(this.#length),
      ...(this.#violation && { violation: this.#violation }),
    };
    this.#toRecordHeader(this.#offset + RECORD_HEADER_SIZE + whole.length);
    switch (event.type) {
      case LibxlRecord.END:
        this.#state = 'done';
        break;
      case LibxlRecord.LIBXC_CONTEXT:
        this.#libxc = new LibxcReader({ ...this.#options, offset: this.#offset });
        this.#interrupted = undefined;
        this.#hadLibxc = true;
        break;
      case LibxlRecord.CHECKPOINT_END:
        this.#libxc = this.#interrupted;
        this.#interrupted = undefined;
        this.#libxc?.continueAt(this.#offset);
        break;
    }
    return event;
  }

  #toRecordHeader(offset: number): void {
    this.#offset = offset;
    this.#violation = undefined;
    this.#state = 'record-header';
    this.#head.begin(RECORD_HEADER_SIZE);
  }
}
